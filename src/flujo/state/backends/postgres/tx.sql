-- name: find
SELECT r.key, run_id, pipeline_id, pipeline_name, pipeline_version, total_steps, fingerprint, input, created_at,
       status, rev, updated_at, error_message, due_at, fence, owner, claimed_at, claim_rev, crashes, busy
FROM flujo.run AS r
LEFT JOIN flujo.start AS s ON s.key = coalesce((SELECT f.start FROM flujo.fork AS f WHERE f.key = r.key), r.key)
WHERE run_id = ANY ($1::text[])
ORDER BY run_id

-- name: lock_run
SELECT 1 FROM flujo.run WHERE key = $1 FOR NO KEY UPDATE

-- name: new_keys
SELECT nextval('flujo.run_key') FROM generate_series(1, $1)

-- name: insert_run
WITH began AS (INSERT INTO flujo.start (key, fingerprint, input) VALUES ($1, $19, $20))
INSERT INTO flujo.run
      (key, run_id, pipeline_id, pipeline_name, pipeline_version, total_steps, created_at,
       status, rev, updated_at, error_message, due_at, fence, owner, claimed_at, claim_rev, crashes, busy)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18)

-- name: insert_fork
WITH fork AS (INSERT INTO flujo.fork (key, parent, rev, start, identity) VALUES ($1, $19, $20, $21, $22))
INSERT INTO flujo.run
      (key, run_id, pipeline_id, pipeline_name, pipeline_version, total_steps, created_at,
       status, rev, updated_at, error_message, due_at, fence, owner, claimed_at, claim_rev, crashes, busy)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18)

-- name: renew_run
UPDATE flujo.run
SET run_id = $2, pipeline_id = $3, pipeline_name = $4, pipeline_version = $5, total_steps = $6, created_at = $7,
    status = $8, rev = $9, updated_at = $10, error_message = $11, due_at = $12, fence = $13, owner = $14,
    claimed_at = $15, claim_rev = $16, crashes = $17, busy = $18
WHERE key = $1

-- name: drop_run
DELETE FROM flujo.run WHERE key = $1

-- name: drop_start
DELETE FROM flujo.start WHERE key = $1

-- name: drop_log
DELETE FROM flujo.log WHERE seq > $1 AND seq < ($2 + 1) << 24

-- name: drop_snapshot
DELETE FROM flujo.snapshot WHERE seq > $1 AND seq < ($2 + 1) << 24

-- name: share_forks
SELECT pg_advisory_xact_lock_shared(flujo.space(), 0)

-- name: lock_forks
SELECT pg_advisory_xact_lock(flujo.space(), 0)

-- name: fork
SELECT parent, rev, start, identity FROM flujo.fork WHERE key = $1

-- name: parts
SELECT key, after, upto FROM flujo.parts($1, $2) ORDER BY n

-- name: drop_fork
DELETE FROM flujo.fork WHERE key = $1

-- name: shared
SELECT max(rev) FROM flujo.fork WHERE parent = $1

-- name: is_run
SELECT 1 FROM flujo.run WHERE key = $1

-- name: has_start
SELECT 1 FROM flujo.start WHERE key = $1

-- name: put_row
INSERT INTO flujo.log VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)

-- name: arrival
SELECT max(seq) FROM flujo.log AS l WHERE seq > $1 << 24 AND seq <= ($1 << 24 | $2) AND idx = $3
AND NOT EXISTS (SELECT 1 FROM flujo.log AS b WHERE b.seq = l.seq - 1 AND b.idx = l.idx)

-- name: newest
SELECT seq, idx, status, at, busy, ended, out_rev, snap_rev, records, output, delta, ctx, rest, sum
FROM flujo.log WHERE seq > $1 << 24 AND seq < ($1 + 1) << 24 ORDER BY seq DESC LIMIT 1

-- name: row
SELECT seq, idx, status, at, busy, ended, out_rev, snap_rev, records, output, delta, ctx, rest, sum
FROM flujo.log WHERE seq = $1

-- name: rows
SELECT seq, idx, status, at, busy, ended, out_rev, snap_rev, records, output, delta, ctx, rest, sum
FROM flujo.log
WHERE seq >= (SELECT flujo.first_beyond($1, $2, $3, $4)) AND seq <= ($1 << 24 | $3) AND ended > $4
  AND records IS NOT NULL
ORDER BY seq LIMIT $5

-- name: deltas
SELECT delta FROM flujo.log WHERE seq > $1 AND seq <= $2 AND delta IS NOT NULL ORDER BY seq

-- name: append
-- The row of the run is locked until the end, so that no claim goes in between: FOR SHARE waits for one that is under
-- way, and then looks again whose the run is.
INSERT INTO flujo.log
SELECT $1, $2, $3::text, $4, $5, $6, $7, $8, $9::bytea, $10::bytea, $11::bytea, $12, $13::bytea, $14
FROM flujo.run
WHERE key = $1 >> 24 AND fence = $15
  AND ($1 & 16777215 = 1 OR EXISTS (SELECT 1 FROM flujo.log WHERE seq = $1 - 1))
FOR SHARE OF run
ON CONFLICT DO NOTHING
RETURNING seq

-- name: append_all
INSERT INTO flujo.log
SELECT v.seq, v.idx, v.status, v.at, v.busy, v.ended, v.out_rev, v.snap_rev, v.records, v.output, v.delta, v.ctx,
       v.rest, v.sum
FROM unnest(
    $1::bigint[], $2::bigint[], $3::text[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[], $8::bigint[],
    $9::bytea[], $10::bytea[], $11::bytea[], $12::bytea[], $13::bytea[], $14::bytea[], $15::bigint[]
) AS v (seq, idx, status, at, busy, ended, out_rev, snap_rev, records, output, delta, ctx, rest, sum, fence)
JOIN flujo.run AS r ON r.key = v.seq >> 24 AND r.fence = v.fence
WHERE v.seq & 16777215 = 1 OR EXISTS (SELECT 1 FROM flujo.log AS b WHERE b.seq = v.seq - 1)
FOR SHARE OF r
ON CONFLICT DO NOTHING
RETURNING seq

-- name: finish_all
-- As append_all, with what a last save does to the run's row.
WITH v AS MATERIALIZED (
    SELECT * FROM unnest(
        $1::bigint[], $2::bigint[], $3::text[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[], $8::bigint[],
        $9::bytea[], $10::bytea[], $11::bytea[], $12::bytea[], $13::bytea[], $14::bytea[], $15::bigint[],
        $16::text[], $17::bigint[]
    ) AS u (seq, idx, status, at, busy, ended, out_rev, snap_rev, records, output, delta, ctx, rest, sum, fence,
            error, due)
), appended AS (
    INSERT INTO flujo.log
    SELECT v.seq, v.idx, v.status, v.at, v.busy, v.ended, v.out_rev, v.snap_rev, v.records, v.output, v.delta, v.ctx,
           v.rest, v.sum
    FROM v
    JOIN flujo.run AS r ON r.key = v.seq >> 24 AND r.fence = v.fence
    WHERE v.seq & 16777215 = 1 OR EXISTS (SELECT 1 FROM flujo.log AS b WHERE b.seq = v.seq - 1)
    FOR NO KEY UPDATE OF r
    ON CONFLICT DO NOTHING
    RETURNING seq
)
UPDATE flujo.run AS r
SET status = v.status, rev = v.seq & 16777215, updated_at = v.at, busy = v.busy, error_message = v.error,
    due_at = v.due, fence = NULL, owner = NULL
FROM v JOIN appended AS a ON a.seq = v.seq
WHERE r.key = v.seq >> 24 AND r.fence = v.fence
RETURNING v.seq

-- name: snapshot
SELECT text, sum FROM flujo.snapshot WHERE seq = $1

-- name: put_snapshot
INSERT INTO flujo.snapshot VALUES ($1, $2, $3)

-- name: finish
UPDATE flujo.run
SET status = $1, rev = $2, updated_at = $3, busy = $4, error_message = $5, due_at = $6, fence = NULL, owner = NULL
WHERE key = $7 AND fence = $8

-- name: set_free
UPDATE flujo.run SET status = $1, fence = NULL, owner = NULL WHERE key = $2 AND fence = $3

-- name: owner
SELECT host, pid, flujo.lives(o) FROM flujo.owner AS o WHERE id = $1

-- name: draw_owner
SELECT nextval('flujo.owner_id')

-- name: attach
SELECT pg_try_advisory_lock(flujo.space(), $1::integer)

-- name: forget_dead
DELETE FROM flujo.owner AS o WHERE NOT flujo.lives(o) AND id <> $1

-- name: beat
INSERT INTO flujo.owner (id, host, pid, attached, lease, started_at, beat_at)
VALUES ($1, $2, $3, $4, $5, flujo.now_us(), flujo.now_us())
ON CONFLICT (id) DO UPDATE SET beat_at = flujo.now_us(), attached = EXCLUDED.attached

-- name: resign
UPDATE flujo.owner SET beat_at = 0 WHERE id = $1

-- name: list_of_status
(
    SELECT r.key, r.updated_at FROM flujo.run AS r
    WHERE {filter}
    ORDER BY r.updated_at DESC, r.key DESC LIMIT {most}
)

-- name: list_runs
SELECT r.run_id, r.pipeline_id, r.pipeline_name, r.pipeline_version, r.status, h.idx, r.total_steps,
       CASE WHEN r.status <> 'running' THEN r.error_message END, r.created_at, h.at, h.busy,
       CASE WHEN r.status = 'paused' THEN r.due_at END
FROM (SELECT * FROM ({found}) AS u ORDER BY updated_at DESC, key DESC LIMIT {limit} OFFSET {offset}) AS f
JOIN flujo.run AS r ON r.key = f.key
CROSS JOIN LATERAL (
    SELECT l.idx, l.at, l.busy FROM flujo.log AS l WHERE l.seq > f.key << 24 AND l.seq < (f.key + 1) << 24
    ORDER BY l.seq DESC LIMIT 1
) AS h
ORDER BY f.updated_at DESC, f.key DESC

-- name: count_runs
SELECT {by}, count(*), sum(r.busy)::bigint FROM flujo.run AS r
WHERE (r.status <> 'running'
       OR EXISTS (SELECT 1 FROM flujo.log AS l WHERE l.seq > r.key << 24 AND l.seq < (r.key + 1) << 24))
  AND {filter}
GROUP BY 1

-- name: failed
SELECT run_id, error_message, updated_at FROM flujo.run WHERE status = 'failed'
ORDER BY updated_at DESC, key DESC LIMIT $1

-- name: shapes
SELECT r.pipeline_id, r.pipeline_name, r.pipeline_version, s.fingerprint, r.run_id
FROM flujo.run AS r
LEFT JOIN flujo.start AS s ON s.key = coalesce((SELECT f.start FROM flujo.fork AS f WHERE f.key = r.key), r.key)
WHERE r.status = ANY ($1::text[])
  AND (r.status <> 'running'
       OR EXISTS (SELECT 1 FROM flujo.log AS l WHERE l.seq > r.key << 24 AND l.seq < (r.key + 1) << 24))

-- name: old_runs
SELECT key, run_id, rev FROM flujo.run WHERE status = $1 AND updated_at < $2 ORDER BY updated_at LIMIT $3

-- name: runs_after
SELECT key, run_id FROM flujo.run WHERE key > $1 ORDER BY key LIMIT $2

-- name: recent
SELECT count(*) FROM flujo.run AS r
WHERE r.status = ANY ($1::text[]) AND r.updated_at >= $2
  AND (r.status <> 'running'
       OR EXISTS (SELECT 1 FROM flujo.log AS l WHERE l.seq > r.key << 24 AND l.seq < (r.key + 1) << 24))

-- name: put_mail
WITH posted AS (
    INSERT INTO flujo.mail (seq, id, kind, name, body, author, reason, at, sum, run)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
    RETURNING run, seq
)
SELECT pg_notify('flujo.mail', run || ' ' || seq) FROM posted

-- name: next_mail
SELECT CASE WHEN n > $1 THEN n ELSE setval('flujo.mail_seq', $1 + 1) END FROM nextval('flujo.mail_seq') AS n

-- name: mail
SELECT seq, id, kind, name, body, author, reason, at, sum FROM flujo.mail WHERE run = $1 AND seq > $2
ORDER BY seq LIMIT $3

-- name: mail_before
SELECT seq, id, kind, name, body, author, reason, at, sum FROM flujo.mail WHERE run = $1 AND seq < $2
ORDER BY seq DESC LIMIT 1

-- name: mail_of_id
SELECT seq, id, kind, name, body, author, reason, at, sum FROM flujo.mail WHERE run = $1 AND id = $2

-- name: mail_beginning
SELECT seq, id, kind, name, body, author, reason, at, sum FROM flujo.mail WHERE run = $1 AND starts_with(id, $2)
ORDER BY seq

-- name: count_mail
SELECT count(*) FROM flujo.mail WHERE run = $1 AND seq > $2

-- name: move_mail
UPDATE flujo.mail SET run = $1 WHERE run = $2

-- name: drop_mail
DELETE FROM flujo.mail WHERE run = $1

-- name: news
SELECT k, m.seq FROM unnest($1::bigint[]) AS k
CROSS JOIN LATERAL (SELECT seq FROM flujo.mail WHERE run = k ORDER BY seq DESC LIMIT 1) AS m

-- name: set_due
UPDATE flujo.run SET due_at = $1 WHERE key = $2

-- name: notify_work
SELECT pg_notify('flujo.work', $1::text)

-- name: xid
SELECT pg_current_xact_id_if_assigned()::text

-- name: status_of
SELECT pg_xact_status($1::text::xid8)

-- name: listen
LISTEN "flujo.mail"

-- name: unlisten
UNLISTEN "flujo.mail"

-- name: due_runs
WITH RECURSIVE served AS MATERIALIZED (
    SELECT * FROM unnest($1::text[], $2::text[]) AS s (name, version)
), owners (id) AS (  -- those of any run, by hops over the index
    SELECT min(owner) FROM flujo.run WHERE owner IS NOT NULL
    UNION ALL
    SELECT (SELECT min(r.owner) FROM flujo.run AS r WHERE r.owner > o.id) FROM owners AS o WHERE o.id IS NOT NULL
), dead AS MATERIALIZED (
    SELECT id FROM owners AS d
    WHERE id IS NOT NULL AND NOT EXISTS (SELECT 1 FROM flujo.owner AS o WHERE o.id = d.id AND flujo.lives(o))
)
SELECT run_id FROM (
    SELECT d.run_id FROM served AS s CROSS JOIN LATERAL (
        SELECT r.run_id FROM flujo.run AS r
        WHERE r.pipeline_name = s.name AND r.pipeline_version = s.version AND r.status = 'paused' AND r.due_at <= $3
        ORDER BY r.due_at LIMIT $4 FOR NO KEY UPDATE SKIP LOCKED
    ) AS d
    UNION ALL
    SELECT f.run_id FROM served AS s CROSS JOIN LATERAL (
        SELECT r.run_id FROM flujo.run AS r
        WHERE r.pipeline_name = s.name AND r.pipeline_version = s.version AND r.status = 'running' AND r.fence IS NULL
          AND EXISTS (SELECT 1 FROM flujo.log AS l WHERE l.seq > r.key << 24 AND l.seq < (r.key + 1) << 24)
        ORDER BY r.updated_at LIMIT $4 FOR NO KEY UPDATE OF r SKIP LOCKED
    ) AS f
    UNION ALL
    SELECT g.run_id FROM dead AS d CROSS JOIN LATERAL (
        SELECT r.run_id FROM flujo.run AS r
        WHERE r.owner = d.id AND (r.pipeline_name, r.pipeline_version) IN (SELECT name, version FROM served)
          AND EXISTS (SELECT 1 FROM flujo.log AS l WHERE l.seq > r.key << 24 AND l.seq < (r.key + 1) << 24)
        LIMIT $4 FOR NO KEY UPDATE OF r SKIP LOCKED
    ) AS g
) AS found LIMIT $4
