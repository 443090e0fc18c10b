-- Version 2: the version itself, so that a start that has nothing to change reads one row and locks nothing.

CREATE TABLE draftstream_schema (
    one_row     boolean     NOT NULL PRIMARY KEY DEFAULT true CHECK (one_row),
    version     integer     NOT NULL,                      -- the number of the newest migration
    migrated_at timestamptz NOT NULL DEFAULT now()
);
INSERT INTO draftstream_schema (version) VALUES (2);

-- The last columns of LangGraph's own tables, where an earlier version of its saver made them.
ALTER TABLE checkpoint_writes ADD COLUMN IF NOT EXISTS task_path text NOT NULL DEFAULT '';
ALTER TABLE checkpoint_blobs ALTER COLUMN blob DROP NOT NULL;

-- A service from before versions replaces functions by its own at each start. It can't replace one whose parameters
-- have other names, and refuses to start.
DROP FUNCTION fork_lock(text, text);
CREATE FUNCTION fork_lock(owner text, thread_id text) RETURNS bigint LANGUAGE sql IMMUTABLE AS
    $$ SELECT hashtextextended(owner || '/' || thread_id, 0) $$;
