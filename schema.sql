-- The whole schema, for a new database. storage/migrations/ leads a database with an earlier version to the same
-- schema. So a change here needs a migration that does the same, and a new version. A test compares the two ways.

CREATE TABLE draftstream_schema (
    one_row     boolean     NOT NULL PRIMARY KEY DEFAULT true CHECK (one_row),
    version     integer     NOT NULL,                      -- the number of the newest migration
    migrated_at timestamptz NOT NULL DEFAULT now()
);
INSERT INTO draftstream_schema (version) VALUES (4);

-- ---------------------------------------------------------------------------------------------------------------
-- The history that people read: threads, their runs, and one row for each item (a message, or a version of a document)

CREATE TABLE threads (
    owner      text        NOT NULL,
    thread_id  text        NOT NULL,
    title      text        NOT NULL,
    last_seq   bigint      NOT NULL,                       -- the seq of the thread's newest run
    head_run_id text,                                      -- the run that the next message continues
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    PRIMARY KEY (owner, thread_id)
);

-- The list of an owner's threads, newest first. The time of creation never changes, so a page never skips or repeats.
CREATE INDEX threads_newest ON threads (owner, created_at DESC, thread_id DESC);

CREATE TABLE runs (
    run_id        text        NOT NULL PRIMARY KEY,
    owner         text        NOT NULL,
    thread_id     text        NOT NULL,
    seq           bigint      NOT NULL,                    -- counts the thread's runs from 1, in all its branches
    parent_run_id text,                                    -- the run that it continues; NULL: it begins a conversation
    status        text        NOT NULL CHECK (status IN (
        'running',                                         -- → any of the others, once
        'completed',                                       -- the model finished, or the provider cut it (see reason)
        'cancelled',                                       -- a person, the run's time limit or a shutdown stopped it
        'failed',                                          -- see error
        'interrupted'                                      -- its process ended before it
    )),
    reason        text,                                    -- of the run's `end` event: stop, length, content_filter, …
    error         jsonb,                                   -- of the run's `error` event: content, code, retryable
    usage         jsonb,                                   -- input_tokens, output_tokens
    model         text        NOT NULL,
    checkpoint_id text,                                    -- the state that the run left
    idempotency_key text,
    fingerprint   text,                                    -- of the request with that key
    leased_until  timestamptz,                             -- the lease of its process, by the database's clock; NULL: a copy
    started_at    timestamptz NOT NULL,
    ended_at      timestamptz,
    begun_by      text,                                    -- the API key or the JWT's client; NULL: the service was open
    UNIQUE (owner, thread_id, seq)                         -- the history in order, and no two runs in one place
);

-- Whether a process carries the run out. A process that does not renew the lease is dead, or was stopped too long.
CREATE FUNCTION in_progress(run runs) RETURNS boolean LANGUAGE sql STABLE PARALLEL SAFE AS
    $$ SELECT run.status = 'running' AND run.leased_until > now() $$;

-- A run ends once. If a process was stopped past its lease, another one may have set its run to `interrupted`. Then the
-- unit with the run's end, its items and its checkpoint is refused as a whole.
CREATE FUNCTION run_ends_once() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'run % is % already', OLD.run_id, OLD.status USING ERRCODE = 'restrict_violation';
END $$;
CREATE TRIGGER run_ends_once BEFORE UPDATE OF status ON runs FOR EACH ROW
    WHEN (OLD.status <> 'running' AND NEW.status <> OLD.status) EXECUTE FUNCTION run_ends_once();

-- The key of the advisory lock that fork_thread holds while it makes a thread of this name.
CREATE FUNCTION fork_lock(owner text, thread_id text) RETURNS bigint LANGUAGE sql IMMUTABLE AS
    $$ SELECT hashtextextended(owner || '/' || thread_id, 0) $$;

-- A run needs its thread. After the thread was deleted, a run that read its head before can't begin in the middle of
-- it, and the end of an earlier run restores nothing.
CREATE FUNCTION run_has_its_place() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM runs WHERE run_id = NEW.run_id) AND (NEW.status <> 'running' OR NOT EXISTS (
            SELECT FROM runs WHERE owner = NEW.owner AND thread_id = NEW.thread_id AND seq = NEW.seq - 1)
            OR NOT pg_try_advisory_xact_lock_shared(fork_lock(NEW.owner, NEW.thread_id))) THEN
        RAISE EXCEPTION 'the place of run % is gone', NEW.run_id USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER run_has_its_place BEFORE INSERT ON runs FOR EACH ROW
    WHEN ((NEW.status <> 'running' OR NEW.seq > 1) AND current_setting('draftstream.forking', true) IS DISTINCT FROM 'yes')
    EXECUTE FUNCTION run_has_its_place();

-- A request that is sent again finds its run. Few runs have a key.
CREATE UNIQUE INDEX runs_idempotency_key ON runs (owner, idempotency_key) WHERE idempotency_key IS NOT NULL;

-- The number of runs that each owner has in progress, read once a second. Without the lease, so that its renewal is
-- cheap.
CREATE INDEX runs_running ON runs (owner) WHERE status = 'running';

CREATE TABLE messages (
    owner      text        NOT NULL,
    thread_id  text        NOT NULL,
    seq        bigint      NOT NULL,                       -- of the run
    item       integer     NOT NULL,                       -- -1: the user's message; from 0: the run's items, in order
    run_id     text        NOT NULL,
    role       text        NOT NULL CHECK (role IN ('user', 'assistant')),
    type       text        NOT NULL CHECK (type IN ('message', 'doc')),
    content    text        NOT NULL,
    complete   boolean     NOT NULL,                       -- false: the run ended in the middle of it
    doc_id     text,
    title      text,
    version    integer,
    created_at timestamptz NOT NULL,
    words      tsvector,                                   -- for the search; filled later, as it takes milliseconds
    PRIMARY KEY (owner, thread_id, seq, item)              -- one scan of this index reads a thread in order
);

-- The content of runs in progress, a few rows a second. The transaction that stores a run's items deletes its pieces.
CREATE TABLE pieces (
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

-- A thread's history includes the content of its runs in progress.
CREATE INDEX pieces_thread ON pieces (owner, thread_id, seq);

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

-- Set a run to `interrupted` whose process ended, and make items of its pieces. It is refused if that run has ended
-- after all, or has more than the `known` code points: the run that wants to continue it has not read these.
CREATE FUNCTION interrupt_run(its_id text, known bigint) RETURNS void LANGUAGE plpgsql AS $$
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

-- The runs of deleted threads, for 30 days: a journal that is replayed in this time must not bring one back.
CREATE TABLE deleted_runs (
    run_id     text        NOT NULL PRIMARY KEY,
    deleted_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX deleted_runs_age ON deleted_runs (deleted_at);

-- Records that the database refused for their content, set aside so that it could take the others.
CREATE TABLE dead_letters (
    id         bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    thread     text        NOT NULL,                       -- owner/thread_id
    error      text        NOT NULL,
    writes     bytea       NOT NULL,                       -- [[statement, {field: value}], …], JSON that may have NUL
    created_at timestamptz NOT NULL DEFAULT now()
);

-- Search: one index for titles, one for items. The configuration 'simple' knows no language: it finds words as they are
-- written, in every language. The first 100,000 characters of an item are searched, as a tsvector holds a megabyte at
-- most. The owner is a word of each vector, too; it begins with a space, as no word of a text does. So a search reads
-- only the entries of its owner, however many other owners use the same words.
--
-- If the database's locale is C, the parser takes typographic quotes and dashes for letters; drafts are full of them.
-- These functions name no table or function of this schema: VACUUM runs them, too, with an empty search path.
CREATE FUNCTION search_vector(owner text, said text) RETURNS tsvector
    LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
DECLARE
    of_owner tsvector := array_to_tsvector(ARRAY[' ' || hashtextextended(owner, 0)]);
BEGIN
    RETURN to_tsvector('simple', translate(left(said, 100000), '“”„«»‘’‚–—…•§', '"""""''''''     ')) || of_owner;
EXCEPTION WHEN program_limit_exceeded THEN
    RETURN of_owner;                                       -- stored all the same, and not found
END $$;
CREATE FUNCTION search_query(owner text, words text) RETURNS tsquery
    LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
DECLARE
    query tsquery := websearch_to_tsquery('simple', translate(words, '“”„«»‘’‚–—…•§', '"""""''''''     '));
BEGIN
    RETURN CASE WHEN numnode(query) > 0 THEN query && quote_literal(' ' || hashtextextended(owner, 0))::tsquery END;
END $$;
CREATE INDEX threads_search ON threads USING gin (search_vector(owner, title))
    WITH (gin_pending_list_limit = 512);                   -- in KB: the writer merges it in milliseconds
CREATE INDEX messages_search ON messages USING gin (words);

-- The items that have no words yet, oldest first.
CREATE INDEX messages_unsearched ON messages (created_at) WHERE words IS NULL;

-- The use of each limit that each process has allowed, for the other processes. Empty while no such limit is set.
CREATE TABLE limit_counts (
    owner      text        NOT NULL,
    name       text        NOT NULL,                       -- of the limit: requests, tokens
    slot       bigint      NOT NULL,                       -- a twelfth of the limit's window, numbered since the epoch
    process    text        NOT NULL,
    used       bigint      NOT NULL,                       -- in this slot so far; never falls
    updated_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,                       -- from then on the slot does not count
    PRIMARY KEY (owner, name, slot, process)               -- the counts of all processes are added up
);

-- Each process reads the changes once a second.
CREATE INDEX limit_counts_changed ON limit_counts (updated_at);

-- ---------------------------------------------------------------------------------------------------------------
-- Who may call

-- API keys. A key is revoked and never deleted: a service that once had a key is never open again.
CREATE TABLE access_keys (
    key_id      text        NOT NULL PRIMARY KEY,          -- the public part of the key, for the look-up
    secret_hash bytea       NOT NULL,                      -- SHA-256 of the secret: 32 random bytes need no slow hash
    owner       text        NOT NULL,
    name        text        NOT NULL,
    scopes      text[]      NOT NULL CHECK (scopes <@ ARRAY['chat', 'read', 'admin']),
    created_at  timestamptz NOT NULL DEFAULT now(),
    expires_at  timestamptz,
    revoked_at  timestamptz
);

-- Tokens that an EventSource sends instead of a key, once.
CREATE TABLE stream_tokens (
    hash        bytea       NOT NULL PRIMARY KEY,          -- SHA-256 of the token
    owner       text        NOT NULL,
    scopes      text[]      NOT NULL,
    key_id      text        REFERENCES access_keys,        -- the key that asked for it; its revocation ends its tokens
    expires_at  timestamptz NOT NULL,                      -- for its use; after that, for the resumption of its run
    redeemed_at timestamptz,
    run_id      text,                                      -- the run that it started, and may resume
    credential  text,                                      -- the begun_by of its runs; NULL: it is key_id
    streams     integer     NOT NULL DEFAULT 0,            -- how many it has opened; only the newest one counts
    position    bigint,                                    -- the last one that the newest stream sent; NULL: not known
    finished    boolean     NOT NULL DEFAULT false         -- the run was read to its end: it resumes nothing more
);

-- Expired tokens are deleted by this.
CREATE INDEX stream_tokens_expiry ON stream_tokens (expires_at);

-- The issuers of the JWTs that were ever configured. Two issuers may give one `sub` to two persons. So the owner of a JWT
-- is "jwt:" and the sub for the first issuer, and "jwt2:" and the sub for the second.
CREATE TABLE jwt_issuers (
    number      integer     NOT NULL PRIMARY KEY CHECK (number > 0),
    issuer      text        NOT NULL UNIQUE,
    same_as     integer     REFERENCES jwt_issuers         -- the provider has moved: its owners are those of this number
);

-- ---------------------------------------------------------------------------------------------------------------
-- The agent's state: LangGraph's checkpoints, in the table layout of langgraph-checkpoint-postgres. Either saver can
-- read the other's rows. thread_id is "owner/thread_id". The official saver's indexes on thread_id alone are left out,
-- as the primary keys begin with it.

CREATE TABLE checkpoints (
    thread_id            text  NOT NULL,
    checkpoint_ns        text  NOT NULL DEFAULT '',
    checkpoint_id        text  NOT NULL,                   -- a UUIDv6: newer ones sort after older ones
    parent_checkpoint_id text,
    type                 text,
    checkpoint           jsonb NOT NULL,
    metadata             jsonb NOT NULL DEFAULT '{}',
    PRIMARY KEY (thread_id, checkpoint_ns, checkpoint_id)
);

CREATE TABLE checkpoint_blobs (
    thread_id     text NOT NULL,
    checkpoint_ns text NOT NULL DEFAULT '',
    channel       text NOT NULL,
    version       text NOT NULL,
    type          text NOT NULL,
    blob          bytea,
    PRIMARY KEY (thread_id, checkpoint_ns, channel, version)
);

CREATE TABLE checkpoint_writes (
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

-- The official saver's record of its migrations: its setup() finds them all done.
CREATE TABLE checkpoint_migrations (v integer PRIMARY KEY);
INSERT INTO checkpoint_migrations (v) SELECT generate_series(0, 9);

-- ---------------------------------------------------------------------------------------------------------------
-- Usage: the tokens of each day, in UTC, as providers reported them. A copy that a fork made has used nothing: no
-- process had a lease of it.
CREATE INDEX runs_usage ON runs (owner, ended_at) WHERE usage IS NOT NULL;
CREATE VIEW usage_of_runs AS
SELECT r.owner, r.thread_id, r.ended_at, (r.ended_at AT TIME ZONE 'UTC')::date AS day, r.model,
    (r.usage ->> 'input_tokens')::bigint AS input_tokens, (r.usage ->> 'output_tokens')::bigint AS output_tokens,
    (r.usage ->> 'cached_input_tokens')::bigint AS cached_input_tokens,
    (r.usage ->> 'reasoning_tokens')::bigint AS reasoning_tokens
FROM runs r WHERE r.usage IS NOT NULL AND r.leased_until IS NOT NULL;

-- The same of the runs of deleted threads: figures alone, a row for each day and model of a thread.
CREATE TABLE deleted_usage (
    owner               text   NOT NULL,
    day                 date   NOT NULL,
    model               text   NOT NULL,
    runs                bigint NOT NULL,
    input_tokens        bigint NOT NULL,
    output_tokens       bigint NOT NULL,
    cached_input_tokens bigint,                            -- NULL: no provider reported it
    reasoning_tokens    bigint
);
CREATE INDEX deleted_usage_days ON deleted_usage (owner, day);

-- ---------------------------------------------------------------------------------------------------------------
-- Delete a thread with all that belongs to it. Nothing happens if it was updated since `before`, or does not exist. The
-- lock on the thread's row keeps other processes from beginning a run on it. A thread with a run in progress is
-- refused.
CREATE FUNCTION delete_thread(its_owner text, its_id text, before timestamptz) RETURNS void
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
    INSERT INTO deleted_usage
        SELECT owner, day, model, count(*), sum(input_tokens), sum(output_tokens), sum(cached_input_tokens),
            sum(reasoning_tokens)
        FROM usage_of_runs WHERE owner = its_owner AND thread_id = its_id GROUP BY owner, day, model;
    WITH gone AS (DELETE FROM runs WHERE owner = its_owner AND thread_id = its_id RETURNING run_id)
        INSERT INTO deleted_runs (run_id) SELECT run_id FROM gone ON CONFLICT DO NOTHING;
    DELETE FROM deleted_runs WHERE deleted_at < now() - interval '30 days';
    DELETE FROM checkpoint_writes WHERE thread_id = its_graph_id;
    DELETE FROM checkpoint_blobs WHERE thread_id = its_graph_id;
    DELETE FROM checkpoints WHERE thread_id = its_graph_id;
    DELETE FROM dead_letters WHERE thread = its_graph_id;
    DELETE FROM threads WHERE owner = its_owner AND thread_id = its_id;
END $$;

-- ---------------------------------------------------------------------------------------------------------------
-- Make a thread with the history of the run `tip`, back to the beginning of its conversation, and with the state that
-- this run left. The runs get new ids. The checkpoints keep theirs, as the thread is part of their key.
--
-- The copy may take long, and a writer must not wait for it, as it would for a key that is not committed yet. So the
-- rows of the first place come last: only there could a new run of that thread meet them. A run that began there before
-- the fork can't get the second place meanwhile (see run_has_its_place).
--
-- Call it in a REPEATABLE READ transaction, as the thread may go on or be deleted.
CREATE FUNCTION fork_thread(its_owner text, its_id text, tip text, new_id text) RETURNS void
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
