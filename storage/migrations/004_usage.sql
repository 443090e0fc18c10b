-- Version 4: the usage of each day, also of threads that are deleted.

LOCK TABLE runs IN SHARE MODE;  -- readers go on

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

-- It keeps the figures.
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

UPDATE draftstream_schema SET version = 4, migrated_at = now();
