-- Version 2: the version's own table. A start that has nothing to change reads its row, and locks nothing.

CREATE TABLE draftstream_schema (
    one_row     boolean     NOT NULL PRIMARY KEY DEFAULT true CHECK (one_row),
    version     integer     NOT NULL,                      -- the number of the newest migration
    migrated_at timestamptz NOT NULL DEFAULT now()
);
INSERT INTO draftstream_schema (version) VALUES (2);

-- The newest shape of LangGraph's tables, in case an early version of its saver made them.
ALTER TABLE checkpoint_writes ADD COLUMN IF NOT EXISTS task_path text NOT NULL DEFAULT '';
ALTER TABLE checkpoint_blobs ALTER COLUMN blob DROP NOT NULL;

-- A service from before versions replaces the functions by its own at each start. It can't replace a function whose
-- parameters have other names. So it refuses to start on this version.
DROP FUNCTION fork_lock(text, text);
CREATE FUNCTION fork_lock(owner text, thread_id text) RETURNS bigint LANGUAGE sql IMMUTABLE AS
    $$ SELECT hashtextextended(owner || '/' || thread_id, 0) $$;

-- ---------------------------------------------------------------------------------------------------------------
-- One home for the test of a lease, the items joined from pieces, and the state chain; then the functions that had
-- copies.

-- Whether a process carries the run out. A process that does not renew the lease is dead, or was stopped too long.
CREATE FUNCTION in_progress(run runs) RETURNS boolean LANGUAGE sql STABLE PARALLEL SAFE AS
    $$ SELECT run.status = 'running' AND run.leased_until > now() $$;

-- The items of runs in progress, and of runs whose process ended, joined from their pieces.
CREATE VIEW items_of_pieces AS
SELECT owner, thread_id, seq, item, run_id, 'assistant' AS role, type,
    string_agg(content, '' ORDER BY position) AS content, false AS complete, doc_id, title, version, now() AS created_at
FROM pieces GROUP BY owner, thread_id, seq, item, run_id, type, doc_id, title, version;

-- All items; of runs in progress, the part that is stored.
CREATE VIEW thread_items AS
SELECT owner, thread_id, seq, item, run_id, role, type, content, complete, doc_id, title, version, created_at
FROM messages
UNION ALL
SELECT owner, thread_id, seq, item, run_id, role, type, content, complete, doc_id, title, version, created_at
FROM items_of_pieces;

CREATE OR REPLACE FUNCTION interrupt_run(its_id text, known bigint) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    UPDATE runs SET status = 'interrupted' WHERE run_id = its_id AND (status = 'running' OR checkpoint_id IS NOT NULL);
    IF (SELECT max(position) FROM pieces WHERE run_id = its_id) > known THEN
        RAISE EXCEPTION 'run % has said more', its_id USING ERRCODE = 'restrict_violation';
    END IF;
    -- No piece is added meanwhile: only running runs have pieces added, and that locks the run's row.
    INSERT INTO messages (owner, thread_id, seq, item, run_id, role, type, content, complete,
        doc_id, title, version, created_at)
    SELECT owner, thread_id, seq, item, run_id, role, type, content, complete, doc_id, title, version, created_at
    FROM items_of_pieces WHERE run_id = its_id
    ON CONFLICT (owner, thread_id, seq, item) DO NOTHING;
    DELETE FROM pieces WHERE run_id = its_id;
END $$;

-- The checkpoints that a state is rebuilt from: itself (depth 0) and, for its delta channels, its ancestors back to a
-- stored value of each channel. Without a stored value these are all ancestors.
CREATE FUNCTION state_chain(its_thread text, its_ns text, its_id text)
    RETURNS TABLE (depth integer, checkpoint_id text) LANGUAGE sql STABLE AS $$
WITH RECURSIVE chain AS (
    SELECT 0 AS depth, c.checkpoint_id, c.parent_checkpoint_id,
        ARRAY(SELECT jsonb_object_keys(c.metadata -> 'counters_since_delta_snapshot')) AS open
    FROM checkpoints c WHERE c.thread_id = its_thread AND c.checkpoint_ns = its_ns AND c.checkpoint_id = its_id
  UNION ALL
    SELECT chain.depth + 1, c.checkpoint_id, c.parent_checkpoint_id,
        ARRAY(SELECT o FROM unnest(chain.open) AS o WHERE NOT EXISTS (
            SELECT FROM checkpoint_blobs b WHERE b.thread_id = its_thread AND b.checkpoint_ns = its_ns
                AND b.channel = o AND b.version = c.checkpoint -> 'channel_versions' ->> o AND b.type <> 'empty'))
    FROM chain JOIN checkpoints c ON c.thread_id = its_thread AND c.checkpoint_ns = its_ns
        AND c.checkpoint_id = chain.parent_checkpoint_id
    WHERE cardinality(chain.open) > 0
)
SELECT chain.depth, chain.checkpoint_id FROM chain $$;

CREATE OR REPLACE FUNCTION delete_thread(its_owner text, its_id text, before timestamptz) RETURNS void
    LANGUAGE plpgsql AS $$
DECLARE
    its_graph_id text := its_owner || '/' || its_id;
BEGIN
    PERFORM FROM threads WHERE owner = its_owner AND thread_id = its_id AND updated_at < before FOR UPDATE;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    IF EXISTS (SELECT FROM runs r WHERE owner = its_owner AND thread_id = its_id AND in_progress(r)) THEN
        RAISE EXCEPTION 'the thread has a run in progress' USING ERRCODE = 'restrict_violation';
    END IF;
    DELETE FROM pieces WHERE owner = its_owner AND thread_id = its_id;
    DELETE FROM messages WHERE owner = its_owner AND thread_id = its_id;
    WITH gone AS (DELETE FROM runs WHERE owner = its_owner AND thread_id = its_id RETURNING run_id)
        INSERT INTO deleted_runs (run_id) SELECT run_id FROM gone ON CONFLICT DO NOTHING;
    DELETE FROM deleted_runs WHERE deleted_at < now() - interval '30 days';
    DELETE FROM checkpoint_writes WHERE thread_id = its_graph_id;
    DELETE FROM checkpoint_blobs WHERE thread_id = its_graph_id;
    DELETE FROM checkpoints WHERE thread_id = its_graph_id;
    DELETE FROM dead_letters WHERE thread = its_graph_id;
    DELETE FROM threads WHERE owner = its_owner AND thread_id = its_id;
END $$;

CREATE OR REPLACE FUNCTION fork_thread(its_owner text, its_id text, tip text, new_id text) RETURNS void
    LANGUAGE plpgsql SET plan_cache_mode = 'force_custom_plan' AS $$
DECLARE
    its_graph_id text := its_owner || '/' || its_id;
    new_graph_id text := its_owner || '/' || new_id;
    its_runs text[];
    its_seqs bigint[];
    new_runs text[];
    state text;
    chain text[];
BEGIN
    PERFORM pg_advisory_xact_lock(fork_lock(its_owner, new_id));
    PERFORM set_config('draftstream.forking', 'yes', true);
    IF EXISTS (SELECT FROM threads WHERE owner = its_owner AND thread_id = new_id) THEN
        RAISE EXCEPTION 'there is a thread of that name' USING ERRCODE = 'unique_violation';
    END IF;

    WITH RECURSIVE line AS (
        SELECT run_id, parent_run_id, seq, checkpoint_id FROM runs
        WHERE run_id = tip AND owner = its_owner AND thread_id = its_id
      UNION ALL
        SELECT r.run_id, r.parent_run_id, r.seq, r.checkpoint_id FROM line JOIN runs r ON r.run_id = line.parent_run_id
    )
    SELECT array_agg(run_id ORDER BY seq), array_agg(seq ORDER BY seq), array_agg(gen_random_uuid()::text),
        (array_agg(checkpoint_id ORDER BY seq DESC) FILTER (WHERE checkpoint_id IS NOT NULL))[1]
    INTO its_runs, its_seqs, new_runs, state FROM line;
    IF its_runs IS NULL THEN                               -- the thread was deleted
        RETURN;
    END IF;

    SELECT coalesce(array_agg(checkpoint_id ORDER BY depth), '{}') INTO chain FROM state_chain(its_graph_id, '', state);

    INSERT INTO checkpoint_blobs (thread_id, checkpoint_ns, channel, version, type, blob)
    SELECT new_graph_id, '', b.channel, b.version, b.type, b.blob
    FROM (
        SELECT DISTINCT v.key, v.value FROM checkpoints c, jsonb_each_text(c.checkpoint -> 'channel_versions') AS v
        WHERE c.thread_id = its_graph_id AND c.checkpoint_ns = '' AND c.checkpoint_id = ANY(chain)
    ) AS used JOIN checkpoint_blobs b ON b.thread_id = its_graph_id AND b.checkpoint_ns = ''
        AND b.channel = used.key AND b.version = used.value;
    INSERT INTO checkpoints (thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, type, checkpoint, metadata)
    SELECT new_graph_id, '', c.checkpoint_id, CASE WHEN c.parent_checkpoint_id = ANY(chain) THEN c.parent_checkpoint_id END,
        c.type, c.checkpoint,
        c.metadata || CASE WHEN r.new IS NULL THEN '{}' ELSE jsonb_build_object('run_id', r.new) END
    FROM checkpoints c LEFT JOIN unnest(its_runs, new_runs) AS r(old, new) ON r.old = c.metadata ->> 'run_id'
    WHERE c.thread_id = its_graph_id AND c.checkpoint_ns = '' AND c.checkpoint_id = ANY(chain);
    -- The deltas between two states are stored with the older one. So the deltas at the state itself are its
    -- children's.
    INSERT INTO checkpoint_writes (thread_id, checkpoint_ns, checkpoint_id, task_id, idx, channel, type, blob, task_path)
    SELECT new_graph_id, '', checkpoint_id, task_id, idx, channel, type, blob, task_path FROM checkpoint_writes
    WHERE thread_id = its_graph_id AND checkpoint_ns = '' AND checkpoint_id = ANY(chain[2:]);

    FOR pass IN 1..2 LOOP
        IF pass = 2 THEN
            INSERT INTO threads (owner, thread_id, title, last_seq, head_run_id, created_at, updated_at)
            SELECT owner, new_id, title, cardinality(new_runs), new_runs[cardinality(new_runs)], now(), now()
            FROM threads WHERE owner = its_owner AND thread_id = its_id;
        END IF;
        INSERT INTO runs (run_id, owner, thread_id, seq, parent_run_id, status, reason, error, usage, model,
            checkpoint_id, started_at, ended_at)
        SELECT line.new, its_owner, new_id, line.place, new_runs[line.place - 1],
            CASE status WHEN 'running' THEN 'interrupted' ELSE status END, reason, error, usage, model,
            checkpoint_id, started_at, ended_at
        FROM unnest(its_runs, new_runs) WITH ORDINALITY AS line(old, new, place) JOIN runs ON run_id = line.old
        WHERE (line.place = 1) = (pass = 2);
        INSERT INTO messages (owner, thread_id, seq, item, run_id, role, type, content, complete,
            doc_id, title, version, created_at, words)
        SELECT its_owner, new_id, line.place, m.item, line.new, m.role, m.type, m.content, m.complete,
            m.doc_id, m.title, m.version, m.created_at, m.words
        FROM unnest(its_seqs, new_runs) WITH ORDINALITY AS line(seq, new, place)
        JOIN messages m ON m.owner = its_owner AND m.thread_id = its_id AND m.seq = line.seq
        WHERE (line.place = 1) = (pass = 2);
        -- If a run's process ended and no run continued it, its content is still in pieces.
        INSERT INTO messages (owner, thread_id, seq, item, run_id, role, type, content, complete,
            doc_id, title, version, created_at)
        SELECT its_owner, new_id, line.place, i.item, line.new, i.role, i.type, i.content, i.complete,
            i.doc_id, i.title, i.version, i.created_at
        FROM unnest(its_runs, new_runs) WITH ORDINALITY AS line(old, new, place)
        JOIN items_of_pieces i ON i.owner = its_owner AND i.thread_id = its_id AND i.run_id = line.old
        WHERE (line.place = 1) = (pass = 2);
    END LOOP;
END $$;
