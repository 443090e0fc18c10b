-- Version 1: the schema of the services that kept no version and applied these statements at each start. They lead
-- there from an empty database and from each earlier shape, and change nothing in a complete schema. LangGraph's saver
-- may have made its tables before.

DO $$
DECLARE
    present text;
BEGIN
    SELECT string_agg(format('%I.%I', schemaname, tablename), ', ' ORDER BY tablename) INTO present FROM pg_tables
    WHERE schemaname = current_schema() AND tablename IN ('access_keys', 'checkpoint_blobs', 'checkpoint_migrations',
        'checkpoint_writes', 'checkpoints', 'dead_letters', 'deleted_runs', 'limit_counts', 'messages', 'pieces', 'runs',
        'stream_tokens', 'threads');
    IF present IS NOT NULL THEN
        EXECUTE 'LOCK TABLE ' || present;
    END IF;
END $$;

CREATE TABLE IF NOT EXISTS threads (
    owner      text        NOT NULL,
    thread_id  text        NOT NULL,
    title      text        NOT NULL,
    last_seq   bigint      NOT NULL,
    head_run_id text,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    PRIMARY KEY (owner, thread_id)
);

CREATE INDEX IF NOT EXISTS threads_newest ON threads (owner, created_at DESC, thread_id DESC);

CREATE TABLE IF NOT EXISTS runs (
    run_id        text        NOT NULL PRIMARY KEY,
    owner         text        NOT NULL,
    thread_id     text        NOT NULL,
    seq           bigint      NOT NULL,
    parent_run_id text,
    status        text        NOT NULL CHECK (status IN (
        'running',
        'completed',
        'cancelled',
        'failed',
        'interrupted'
    )),
    reason        text,
    error         jsonb,
    usage         jsonb,
    model         text        NOT NULL,
    checkpoint_id text,
    idempotency_key text,
    fingerprint   text,
    leased_until  timestamptz,
    started_at    timestamptz NOT NULL,
    ended_at      timestamptz,
    UNIQUE (owner, thread_id, seq)
);

DO $$ BEGIN
    IF NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'threads'::regclass AND attname = 'head_run_id') THEN
        ALTER TABLE threads ADD COLUMN head_run_id text;
        ALTER TABLE runs ADD COLUMN parent_run_id text;
        UPDATE runs r SET parent_run_id = p.run_id FROM runs p
            WHERE p.owner = r.owner AND p.thread_id = r.thread_id AND p.seq = r.seq - 1;
        UPDATE threads t SET head_run_id = r.run_id FROM runs r
            WHERE r.owner = t.owner AND r.thread_id = t.thread_id AND r.seq = t.last_seq;
    END IF;
END $$;

CREATE OR REPLACE FUNCTION run_ends_once() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'run % is % already', OLD.run_id, OLD.status USING ERRCODE = 'restrict_violation';
END $$;
CREATE OR REPLACE TRIGGER run_ends_once BEFORE UPDATE OF status ON runs FOR EACH ROW
    WHEN (OLD.status <> 'running' AND NEW.status <> OLD.status) EXECUTE FUNCTION run_ends_once();

CREATE OR REPLACE FUNCTION fork_lock(its_owner text, its_id text) RETURNS bigint LANGUAGE sql IMMUTABLE AS
    $$ SELECT hashtextextended(its_owner || '/' || its_id, 0) $$;

CREATE OR REPLACE FUNCTION run_has_its_place() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM runs WHERE run_id = NEW.run_id) AND (NEW.status <> 'running' OR NOT EXISTS (
            SELECT FROM runs WHERE owner = NEW.owner AND thread_id = NEW.thread_id AND seq = NEW.seq - 1)
            OR NOT pg_try_advisory_xact_lock_shared(fork_lock(NEW.owner, NEW.thread_id))) THEN
        RAISE EXCEPTION 'the place of run % is gone', NEW.run_id USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END $$;
CREATE OR REPLACE TRIGGER run_has_its_place BEFORE INSERT ON runs FOR EACH ROW
    WHEN ((NEW.status <> 'running' OR NEW.seq > 1) AND current_setting('draftstream.forking', true) IS DISTINCT FROM 'yes')
    EXECUTE FUNCTION run_has_its_place();

CREATE UNIQUE INDEX IF NOT EXISTS runs_idempotency_key ON runs (owner, idempotency_key) WHERE idempotency_key IS NOT NULL;

CREATE INDEX IF NOT EXISTS runs_running ON runs (owner) WHERE status = 'running';

CREATE TABLE IF NOT EXISTS messages (
    owner      text        NOT NULL,
    thread_id  text        NOT NULL,
    seq        bigint      NOT NULL,
    item       integer     NOT NULL,
    run_id     text        NOT NULL,
    role       text        NOT NULL CHECK (role IN ('user', 'assistant')),
    type       text        NOT NULL CHECK (type IN ('message', 'doc')),
    content    text        NOT NULL,
    complete   boolean     NOT NULL,
    doc_id     text,
    title      text,
    version    integer,
    created_at timestamptz NOT NULL,
    words      tsvector,
    PRIMARY KEY (owner, thread_id, seq, item)
);
DO $$ BEGIN
    IF NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'messages'::regclass AND attname = 'words') THEN
        ALTER TABLE messages ADD COLUMN words tsvector;
    END IF;
END $$;

CREATE TABLE IF NOT EXISTS pieces (
    run_id     text        NOT NULL,
    position   bigint      NOT NULL,
    owner      text        NOT NULL,
    thread_id  text        NOT NULL,
    seq        bigint      NOT NULL,
    item       integer     NOT NULL,
    type       text        NOT NULL CHECK (type IN ('message', 'doc')),
    content    text        NOT NULL,
    doc_id     text,
    title      text,
    version    integer,
    PRIMARY KEY (run_id, position)
);

CREATE INDEX IF NOT EXISTS pieces_thread ON pieces (owner, thread_id, seq);

CREATE OR REPLACE FUNCTION interrupt_run(its_id text, known bigint) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    UPDATE runs SET status = 'interrupted' WHERE run_id = its_id AND (status = 'running' OR checkpoint_id IS NOT NULL);
    IF (SELECT max(position) FROM pieces WHERE run_id = its_id) > known THEN
        RAISE EXCEPTION 'run % has said more', its_id USING ERRCODE = 'restrict_violation';
    END IF;
    WITH gone AS (DELETE FROM pieces WHERE run_id = its_id RETURNING *)
    INSERT INTO messages (owner, thread_id, seq, item, run_id, role, type, content, complete,
        doc_id, title, version, created_at)
    SELECT owner, thread_id, seq, item, run_id, 'assistant', type, string_agg(content, '' ORDER BY position), false,
        doc_id, title, version, now()
    FROM gone GROUP BY owner, thread_id, seq, item, run_id, type, doc_id, title, version
    ON CONFLICT (owner, thread_id, seq, item) DO NOTHING;
END $$;

CREATE TABLE IF NOT EXISTS deleted_runs (
    run_id     text        NOT NULL PRIMARY KEY,
    deleted_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX IF NOT EXISTS deleted_runs_age ON deleted_runs (deleted_at);

CREATE TABLE IF NOT EXISTS dead_letters (
    id         bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    thread     text        NOT NULL,
    error      text        NOT NULL,
    writes     bytea       NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE OR REPLACE FUNCTION search_vector(owner text, said text) RETURNS tsvector
    LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
DECLARE
    of_owner tsvector := array_to_tsvector(ARRAY[' ' || hashtextextended(owner, 0)]);
BEGIN
    RETURN to_tsvector('simple', translate(left(said, 100000), '“”„«»‘’‚–—…•§', '"""""''''''     ')) || of_owner;
EXCEPTION WHEN program_limit_exceeded THEN
    RETURN of_owner;                                       -- stored all the same, and not found
END $$;
CREATE OR REPLACE FUNCTION search_query(owner text, words text) RETURNS tsquery
    LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
DECLARE
    query tsquery := websearch_to_tsquery('simple', translate(words, '“”„«»‘’‚–—…•§', '"""""''''''     '));
BEGIN
    RETURN CASE WHEN numnode(query) > 0 THEN query && quote_literal(' ' || hashtextextended(owner, 0))::tsquery END;
END $$;
CREATE INDEX IF NOT EXISTS threads_search ON threads USING gin (search_vector(owner, title))
    WITH (gin_pending_list_limit = 512);
CREATE INDEX IF NOT EXISTS messages_search ON messages USING gin (words);

CREATE INDEX IF NOT EXISTS messages_unsearched ON messages (created_at) WHERE words IS NULL;

CREATE TABLE IF NOT EXISTS limit_counts (
    owner      text        NOT NULL,
    name       text        NOT NULL,
    slot       bigint      NOT NULL,
    process    text        NOT NULL,
    used       bigint      NOT NULL,
    updated_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    PRIMARY KEY (owner, name, slot, process)
);

CREATE INDEX IF NOT EXISTS limit_counts_changed ON limit_counts (updated_at);

CREATE TABLE IF NOT EXISTS access_keys (
    key_id      text        NOT NULL PRIMARY KEY,
    secret_hash bytea       NOT NULL,
    owner       text        NOT NULL,
    name        text        NOT NULL,
    scopes      text[]      NOT NULL CHECK (scopes <@ ARRAY['chat', 'read', 'admin']),
    created_at  timestamptz NOT NULL DEFAULT now(),
    expires_at  timestamptz,
    revoked_at  timestamptz
);

CREATE TABLE IF NOT EXISTS stream_tokens (
    hash        bytea       NOT NULL PRIMARY KEY,
    owner       text        NOT NULL,
    scopes      text[]      NOT NULL,
    key_id      text        REFERENCES access_keys,
    expires_at  timestamptz NOT NULL,
    redeemed_at timestamptz,
    run_id      text
);

CREATE INDEX IF NOT EXISTS stream_tokens_expiry ON stream_tokens (expires_at);

CREATE TABLE IF NOT EXISTS checkpoints (
    thread_id            text  NOT NULL,
    checkpoint_ns        text  NOT NULL DEFAULT '',
    checkpoint_id        text  NOT NULL,
    parent_checkpoint_id text,
    type                 text,
    checkpoint           jsonb NOT NULL,
    metadata             jsonb NOT NULL DEFAULT '{}',
    PRIMARY KEY (thread_id, checkpoint_ns, checkpoint_id)
);

CREATE TABLE IF NOT EXISTS checkpoint_blobs (
    thread_id     text NOT NULL,
    checkpoint_ns text NOT NULL DEFAULT '',
    channel       text NOT NULL,
    version       text NOT NULL,
    type          text NOT NULL,
    blob          bytea,
    PRIMARY KEY (thread_id, checkpoint_ns, channel, version)
);

CREATE TABLE IF NOT EXISTS checkpoint_writes (
    thread_id     text    NOT NULL,
    checkpoint_ns text    NOT NULL DEFAULT '',
    checkpoint_id text    NOT NULL,
    task_id       text    NOT NULL,
    idx           integer NOT NULL,
    channel       text    NOT NULL,
    type          text,
    blob          bytea   NOT NULL,
    task_path     text    NOT NULL DEFAULT '',
    PRIMARY KEY (thread_id, checkpoint_ns, checkpoint_id, task_id, idx)
);

CREATE TABLE IF NOT EXISTS checkpoint_migrations (v integer PRIMARY KEY);
INSERT INTO checkpoint_migrations (v) SELECT generate_series(0, 9) ON CONFLICT DO NOTHING;

CREATE OR REPLACE FUNCTION delete_thread(its_owner text, its_id text, before timestamptz) RETURNS void
    LANGUAGE plpgsql AS $$
DECLARE
    its_graph_id text := its_owner || '/' || its_id;
BEGIN
    PERFORM FROM threads WHERE owner = its_owner AND thread_id = its_id AND updated_at < before FOR UPDATE;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    IF EXISTS (SELECT FROM runs WHERE owner = its_owner AND thread_id = its_id
            AND status = 'running' AND leased_until > now()) THEN
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
    IF its_runs IS NULL THEN                               -- deleted meanwhile
        RETURN;
    END IF;

    -- What the state stands on: itself and, for the delta channels, its ancestors up to where each has a value stored.
    WITH RECURSIVE kept AS (
        SELECT 0 AS depth, c.checkpoint_id, c.parent_checkpoint_id,
            ARRAY(SELECT jsonb_object_keys(c.metadata -> 'counters_since_delta_snapshot')) AS open
        FROM checkpoints c WHERE c.thread_id = its_graph_id AND c.checkpoint_ns = '' AND c.checkpoint_id = state
      UNION ALL
        SELECT kept.depth + 1, c.checkpoint_id, c.parent_checkpoint_id,
            ARRAY(SELECT o FROM unnest(kept.open) AS o WHERE NOT EXISTS (
                SELECT FROM checkpoint_blobs b WHERE b.thread_id = its_graph_id AND b.checkpoint_ns = ''
                    AND b.channel = o AND b.version = c.checkpoint -> 'channel_versions' ->> o AND b.type <> 'empty'))
        FROM kept JOIN checkpoints c ON c.thread_id = its_graph_id AND c.checkpoint_ns = ''
            AND c.checkpoint_id = kept.parent_checkpoint_id
        WHERE cardinality(kept.open) > 0
    )
    SELECT coalesce(array_agg(checkpoint_id ORDER BY depth), '{}') INTO chain FROM kept;

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
    -- The deltas between two states are stored with the older one. So those with the state itself are its children's.
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
        -- Of a run whose process ended, and that nothing has gone on from, what was said is still in pieces.
        INSERT INTO messages (owner, thread_id, seq, item, run_id, role, type, content, complete,
            doc_id, title, version, created_at)
        SELECT its_owner, new_id, line.place, p.item, line.new, 'assistant', p.type,
            string_agg(p.content, '' ORDER BY p.position), false, p.doc_id, p.title, p.version, now()
        FROM unnest(its_runs, new_runs) WITH ORDINALITY AS line(old, new, place) JOIN pieces p ON p.run_id = line.old
        WHERE (line.place = 1) = (pass = 2)
        GROUP BY line.place, line.new, p.item, p.type, p.doc_id, p.title, p.version;
    END LOOP;
END $$;
