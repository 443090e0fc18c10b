-- Version 3: who began a run, how far a stream token was read, and the issuers of JWTs.

LOCK TABLE runs, stream_tokens;

ALTER TABLE runs ADD COLUMN begun_by text;

ALTER TABLE stream_tokens
    ADD COLUMN credential text,
    ADD COLUMN streams integer NOT NULL DEFAULT 0,
    ADD COLUMN position bigint,
    ADD COLUMN finished boolean NOT NULL DEFAULT false;

CREATE TABLE jwt_issuers (
    number      integer     NOT NULL PRIMARY KEY CHECK (number > 0),
    issuer      text        NOT NULL UNIQUE,
    same_as     integer     REFERENCES jwt_issuers         -- the provider has moved: its owners are those of this number
);

-- A copy of a run was begun by whoever began the run.
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
        SELECT r.run_id, r.parent_run_id, r.seq, r.checkpoint_id
        FROM line, LATERAL (SELECT * FROM runs WHERE run_id = line.parent_run_id LIMIT 1) AS r
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
            checkpoint_id, started_at, ended_at, begun_by)
        SELECT line.new, its_owner, new_id, line.place, new_runs[line.place - 1],
            CASE status WHEN 'running' THEN 'interrupted' ELSE status END, reason, error, usage, model,
            checkpoint_id, started_at, ended_at, begun_by
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

UPDATE draftstream_schema SET version = 3, migrated_at = now();
