-- Every table of the service. It is applied at each start, so each statement must be harmless when it was run before.

-- ---------------------------------------------------------------------------------------------------------------
-- What a person reads: threads, their runs, and one row an item (a message, or a version of a document)

CREATE TABLE IF NOT EXISTS threads (
    owner      text        NOT NULL,
    thread_id  text        NOT NULL,
    title      text        NOT NULL,
    last_seq   bigint      NOT NULL,                       -- the seq of the thread's newest run
    head_run_id text,                                      -- the run that the next message goes on from
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    PRIMARY KEY (owner, thread_id)
);

-- The list of an owner's threads, newest first. By creation, which never changes: so a page never skips or repeats.
CREATE INDEX IF NOT EXISTS threads_newest ON threads (owner, created_at DESC, thread_id DESC);

CREATE TABLE IF NOT EXISTS runs (
    run_id        text        NOT NULL PRIMARY KEY,
    owner         text        NOT NULL,
    thread_id     text        NOT NULL,
    seq           bigint      NOT NULL,                    -- counts the thread's runs from 1, in all its branches
    parent_run_id text,                                    -- the run that it goes on from; none: it begins a conversation
    status        text        NOT NULL CHECK (status IN (
        'running',                                         -- → any of the others, once
        'completed',                                       -- the model finished, or the provider cut it (see reason)
        'cancelled',                                       -- a person, the run's time limit or a shutdown stopped it
        'failed',                                          -- see error
        'interrupted'                                      -- its process ended in the middle of it
    )),
    reason        text,                                    -- as the run's `end` said: stop, length, content_filter, …
    error         jsonb,                                   -- as the run's `error` said: content, code, retryable
    usage         jsonb,                                   -- input_tokens, output_tokens
    model         text        NOT NULL,
    checkpoint_id text,                                    -- the state that the run left
    idempotency_key text,
    fingerprint   text,                                    -- of the request that came with the key
    leased_until  timestamptz,                             -- a process runs it, by this database's clock; renewed on the way
    started_at    timestamptz NOT NULL,
    ended_at      timestamptz,
    UNIQUE (owner, thread_id, seq)                         -- the history in order; and no two runs in one place
);

-- Tables from before branches: then each run went on from the one before it.
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

-- A run ends once. A process that slept through its lease finds its run interrupted, and nothing of what it brings is
-- stored: the unit that carries the run's end carries its items and its checkpoint, and is refused as a whole.
CREATE OR REPLACE FUNCTION run_ends_once() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'run % is % already', OLD.run_id, OLD.status USING ERRCODE = 'restrict_violation';
END $$;
CREATE OR REPLACE TRIGGER run_ends_once BEFORE UPDATE OF status ON runs FOR EACH ROW
    WHEN (OLD.status <> 'running' AND NEW.status <> OLD.status) EXECUTE FUNCTION run_ends_once();

-- A run goes on where it began: in a thread that is still there. One that was deleted meanwhile is not begun again in the
-- middle by a run that had looked at it before, and nothing comes back of it with the end of a run that it had.
CREATE OR REPLACE FUNCTION run_has_its_place() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM runs WHERE run_id = NEW.run_id) AND (NEW.status <> 'running' OR NOT EXISTS (
            SELECT FROM runs WHERE owner = NEW.owner AND thread_id = NEW.thread_id AND seq = NEW.seq - 1)) THEN
        RAISE EXCEPTION 'the place of run % is gone', NEW.run_id USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END $$;
CREATE OR REPLACE TRIGGER run_has_its_place BEFORE INSERT ON runs FOR EACH ROW
    WHEN (NEW.status <> 'running' OR NEW.seq > 1) EXECUTE FUNCTION run_has_its_place();

-- A request that comes again finds its run; few runs have a key.
CREATE UNIQUE INDEX IF NOT EXISTS runs_idempotency_key ON runs (owner, idempotency_key) WHERE idempotency_key IS NOT NULL;

-- How many runs each caller has in progress, read once a second. The lease is not in it, so that renewing one stays cheap.
CREATE INDEX IF NOT EXISTS runs_running ON runs (owner) WHERE status = 'running';

CREATE TABLE IF NOT EXISTS messages (
    owner      text        NOT NULL,
    thread_id  text        NOT NULL,
    seq        bigint      NOT NULL,                       -- of the run
    item       integer     NOT NULL,                       -- -1: the user's message; from 0: what the run said, in order
    run_id     text        NOT NULL,
    role       text        NOT NULL CHECK (role IN ('user', 'assistant')),
    type       text        NOT NULL CHECK (type IN ('message', 'doc')),
    content    text        NOT NULL,
    complete   boolean     NOT NULL,                       -- false: the run was stopped in the middle of it
    doc_id     text,
    title      text,
    version    integer,
    created_at timestamptz NOT NULL,
    words      tsvector,                                   -- for the search; found a moment later, as it takes milliseconds
    PRIMARY KEY (owner, thread_id, seq, item)              -- a thread is read by one scan of this index, in order
);
DO $$ BEGIN                                                -- a table from before it; an ALTER that does nothing would lock it
    IF NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'messages'::regclass AND attname = 'words') THEN
        ALTER TABLE messages ADD COLUMN words tsvector;
    END IF;
END $$;

-- What a run in progress has said so far, a few rows a second; deleted when it ends, with its items in one transaction.
CREATE TABLE IF NOT EXISTS pieces (
    run_id     text        NOT NULL,
    position   bigint      NOT NULL,                       -- of the piece's end, in code points of the run's content
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

-- A thread's history includes what its runs in progress have said.
CREATE INDEX IF NOT EXISTS pieces_thread ON pieces (owner, thread_id, seq);

-- The runs of deleted threads, for the month in which a journal may still bring one: it stays away.
CREATE TABLE IF NOT EXISTS deleted_runs (
    run_id     text        NOT NULL PRIMARY KEY,
    deleted_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX IF NOT EXISTS deleted_runs_age ON deleted_runs (deleted_at);

-- A record that the database refused for its content, set aside so that the others could go on.
CREATE TABLE IF NOT EXISTS dead_letters (
    id         bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    thread     text        NOT NULL,                       -- owner/thread_id
    error      text        NOT NULL,
    writes     bytea       NOT NULL,                       -- JSON: [[sql, [arguments]], …]; bytes, as it may hold NUL
    created_at timestamptz NOT NULL DEFAULT now()
);

-- Search: one index for titles, one for what was said. The configuration 'simple' knows no language, so it finds words as
-- they are written, in any. Of a document the first 100,000 characters are searched: a tsvector holds a megabyte at most.
-- The owner is a word of it too, one that no text has (it begins with a space): so a search reads what is its owner's,
-- however many others said the same.
--
-- The parser takes typographic quotes and dashes for letters where the database's locale is C; a draft is full of them.
-- These functions name nothing of this schema when they run: an index is also kept by VACUUM, which looks at no schema.
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
    WITH (gin_pending_list_limit = 512);                   -- in KB: merged by the writer, in milliseconds
CREATE INDEX IF NOT EXISTS messages_search ON messages USING gin (words);

-- The items whose words are still to be found, oldest first.
CREATE INDEX IF NOT EXISTS messages_unsearched ON messages (created_at) WHERE words IS NULL;

-- What each process has let its callers use of a limit, so that the others know; empty while no such limit is set.
CREATE TABLE IF NOT EXISTS limit_counts (
    owner      text        NOT NULL,
    name       text        NOT NULL,                       -- of the limit: requests, tokens
    slot       bigint      NOT NULL,                       -- a twelfth of the limit's window, numbered since the epoch
    process    text        NOT NULL,
    used       bigint      NOT NULL,                       -- in this slot so far; it only grows
    updated_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,                       -- the slot counts no more
    PRIMARY KEY (owner, name, slot, process)               -- the others' counts of a slot are added up
);

-- Each process reads once a second what has changed.
CREATE INDEX IF NOT EXISTS limit_counts_changed ON limit_counts (updated_at);

-- ---------------------------------------------------------------------------------------------------------------
-- Who may call

-- API keys. A key is revoked, and never deleted: a service that once had one is never open again.
CREATE TABLE IF NOT EXISTS access_keys (
    key_id      text        NOT NULL PRIMARY KEY,          -- the public part of the key, by which it is looked up
    secret_hash bytea       NOT NULL,                      -- SHA-256 of the other part: 32 random bytes need no slow hash
    owner       text        NOT NULL,
    name        text        NOT NULL,
    scopes      text[]      NOT NULL CHECK (scopes <@ ARRAY['chat', 'read', 'admin']),
    created_at  timestamptz NOT NULL DEFAULT now(),
    expires_at  timestamptz,
    revoked_at  timestamptz
);

-- What an EventSource sends in place of a key, once.
CREATE TABLE IF NOT EXISTS stream_tokens (
    hash        bytea       NOT NULL PRIMARY KEY,          -- SHA-256 of the token
    owner       text        NOT NULL,
    scopes      text[]      NOT NULL,
    key_id      text        REFERENCES access_keys,        -- the key that asked for it: revoked, it takes its tokens along
    expires_at  timestamptz NOT NULL,                      -- until it is redeemed; then, until it may no longer resume
    redeemed_at timestamptz,
    run_id      text                                       -- the run that it was redeemed for, and may resume
);

-- Old tokens are deleted by their age.
CREATE INDEX IF NOT EXISTS stream_tokens_expiry ON stream_tokens (expires_at);

-- ---------------------------------------------------------------------------------------------------------------
-- What the agent remembers: LangGraph's checkpoints, in the table layout of langgraph-checkpoint-postgres, so that either
-- reads what the other wrote. thread_id is "owner/thread_id". Its further indexes on thread_id alone are left out: the
-- primary keys begin with it.

CREATE TABLE IF NOT EXISTS checkpoints (
    thread_id            text  NOT NULL,
    checkpoint_ns        text  NOT NULL DEFAULT '',
    checkpoint_id        text  NOT NULL,                   -- a UUIDv6: newer ones sort after older ones
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

-- The official saver's own count of its migrations, so that its setup() finds nothing to do.
CREATE TABLE IF NOT EXISTS checkpoint_migrations (v integer PRIMARY KEY);
INSERT INTO checkpoint_migrations (v) SELECT generate_series(0, 9) ON CONFLICT DO NOTHING;

-- ---------------------------------------------------------------------------------------------------------------
-- Everything of a thread, gone in one transaction; nothing happens to one that was updated since, or is not there. The
-- thread's row is held from the first, so that no process begins a run on it meanwhile; one that has a run in progress is
-- refused.
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
