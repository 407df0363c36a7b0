-- What version 3 adds to version 2.

-- One row a fork: the run `key` has, before its own rows, those that lie under `parent`, up to save `rev`, and in turn
-- what the parent has before its own. A run that is deleted leaves its rows, and its row here, while a fork refers to it.
CREATE TABLE flujo_fork (
    key      INTEGER PRIMARY KEY,
    parent   INTEGER NOT NULL,
    rev      INTEGER NOT NULL,  -- 0: it shares nothing but what its parent began with
    start    INTEGER NOT NULL,  -- the key that its row of flujo_start lies under
    identity BLOB NOT NULL      -- of the parent, which the checksums of its rows cover
) STRICT;
CREATE INDEX flujo_fork_parent ON flujo_fork (parent, rev);

-- As in schema.sql, but over all parts of a run: its own rows, and those that it shares.
DROP VIEW workflow_state;
CREATE VIEW workflow_state AS
SELECT
    r.run_id, r.pipeline_id, r.pipeline_name, r.pipeline_version,
    h.idx AS current_step_index,
    r.total_steps,
    (
        WITH RECURSIVE
        part (key, after, upto) AS (
            SELECT r.key, coalesce((SELECT rev FROM flujo_fork WHERE key = r.key), 0), h.seq & 16777215
            UNION ALL
            SELECT f.parent, coalesce((SELECT rev FROM flujo_fork WHERE key = f.parent), 0), f.rev
            FROM part JOIN flujo_fork AS f ON f.key = part.key
        ),
        whole (rev, text) AS MATERIALIZED (  -- the snapshot, where it is there; else all deltas are folded
            SELECT h.snap_rev, s.text FROM part JOIN flujo_snapshot AS s ON s.seq = (part.key << 24 | h.snap_rev)
            WHERE h.snap_rev > part.after AND h.snap_rev <= part.upto
        ),
        splice (n, at, removed, patch) AS MATERIALIZED (
            SELECT
                row_number() OVER (ORDER BY d.seq & 16777215, s.key),
                s.value ->> 0,
                s.value ->> 1,
                substr(d.delta, instr(d.delta, x'0a') + 1 + (s.value ->> 2), s.value ->> 3)
            FROM part
            JOIN flujo_log AS d
                ON d.seq > (part.key << 24 | max(part.after, coalesce((SELECT rev FROM whole), 0)))
                AND d.seq <= (part.key << 24 | part.upto),
            json_each(CAST(substr(d.delta, 1, instr(d.delta, x'0a') - 1) AS TEXT)) AS s
            WHERE d.delta IS NOT NULL
        ),
        folded (n, text) AS (
            SELECT 0, coalesce((SELECT text FROM whole), '')
            UNION ALL
            SELECT
                splice.n,
                CAST(
                    substr(folded.text, 1, splice.at) || splice.patch
                    || substr(folded.text, splice.at + splice.removed + 1) AS BLOB
                )
            FROM folded JOIN splice ON splice.n = folded.n + 1
        )
        SELECT coalesce(nullif(CAST(text AS TEXT), ''), '{}') FROM folded ORDER BY n DESC LIMIT 1
    ) AS pipeline_context,
    (
        WITH RECURSIVE
        part (key, after) AS (
            SELECT r.key, coalesce((SELECT rev FROM flujo_fork WHERE key = r.key), 0)
            UNION ALL
            SELECT f.parent, coalesce((SELECT rev FROM flujo_fork WHERE key = f.parent), 0)
            FROM part JOIN flujo_fork AS f ON f.key = part.key
            WHERE h.out_rev <= f.rev
        )
        SELECT CAST(o.output AS TEXT) FROM part JOIN flujo_log AS o ON o.seq = (part.key << 24 | h.out_rev)
        WHERE h.out_rev > part.after
    ) AS last_step_output,
    r.status,
    iif(r.status = 'running', NULL, r.error_message) AS error_message,
    h.busy / 1000.0 AS execution_time_ms,
    strftime('%Y-%m-%dT%H:%M:%fZ', r.created_at / 1000000.0, 'unixepoch') AS created_at,
    strftime('%Y-%m-%dT%H:%M:%fZ', h.at / 1000000.0, 'unixepoch') AS updated_at
FROM flujo_run AS r
JOIN flujo_log AS h
    ON h.seq = (SELECT max(seq) FROM flujo_log WHERE seq > r.key << 24 AND seq < (r.key + 1) << 24);
