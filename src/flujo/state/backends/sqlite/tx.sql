-- name: find
SELECT r.key, run_id, pipeline_id, pipeline_name, pipeline_version, total_steps, fingerprint, input, created_at,
       status, rev, updated_at, error_message, due_at, fence, owner, claimed_at, claim_rev, crashes, busy
FROM flujo_run AS r
LEFT JOIN flujo_start AS s ON s.key = coalesce((SELECT start FROM flujo_fork WHERE key = r.key), r.key)
WHERE run_id = ?

-- name: insert_run
INSERT INTO flujo_run
      (key, run_id, pipeline_id, pipeline_name, pipeline_version, total_steps, created_at,
       status, rev, updated_at, error_message, due_at, fence, owner, claimed_at, claim_rev, crashes, busy)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
RETURNING key

-- name: insert_start
INSERT OR REPLACE INTO flujo_start (key, fingerprint, input) VALUES (?, ?, ?)

-- name: beside
SELECT i.run_id, r.run_id
FROM (SELECT * FROM (SELECT run_id, key FROM flujo_run WHERE run_id < ? ORDER BY run_id DESC LIMIT 1)
      UNION ALL
      SELECT * FROM (SELECT run_id, key FROM flujo_run WHERE run_id >= ? ORDER BY run_id LIMIT 1)) AS i
LEFT JOIN flujo_run AS r ON r.key = i.key

-- name: renew_run
INSERT OR REPLACE INTO flujo_run
      (key, run_id, pipeline_id, pipeline_name, pipeline_version, total_steps, created_at,
       status, rev, updated_at, error_message, due_at, fence, owner, claimed_at, claim_rev, crashes, busy)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)

-- name: drop_run
DELETE FROM flujo_run WHERE key = ?

-- name: drop_start
DELETE FROM flujo_start WHERE key = ?

-- name: drop_log
DELETE FROM flujo_log WHERE seq > ? AND seq < (? + 1) << 24

-- name: drop_snapshot
DELETE FROM flujo_snapshot WHERE seq > ? AND seq < (? + 1) << 24

-- name: fork
SELECT parent, rev, start, identity FROM flujo_fork WHERE key = ?

-- name: put_fork
INSERT INTO flujo_fork (key, parent, rev, start, identity) VALUES (?, ?, ?, ?, ?)

-- name: drop_fork
DELETE FROM flujo_fork WHERE key = ?

-- name: shared
SELECT max(rev) FROM flujo_fork WHERE parent = ?

-- name: is_run
SELECT 1 FROM flujo_run WHERE key = ?

-- name: has_start
SELECT 1 FROM flujo_start WHERE key = ?

-- name: put_row
INSERT INTO flujo_log VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)

-- name: arrival
SELECT max(seq) FROM flujo_log AS l WHERE seq > ?1 << 24 AND seq <= ?1 << 24 | ?2 AND idx = ?3
AND NOT EXISTS (SELECT 1 FROM flujo_log WHERE seq = l.seq - 1 AND idx = l.idx)

-- name: newest
SELECT * FROM flujo_log WHERE seq > ? << 24 AND seq < (? + 1) << 24 ORDER BY seq DESC LIMIT 1

-- name: row
SELECT * FROM flujo_log WHERE seq = ?

-- name: rows
SELECT * FROM flujo_log WHERE seq >= ? AND seq <= ? AND ended > ? AND records IS NOT NULL
ORDER BY seq LIMIT ?

-- name: newest_seq
SELECT max(seq) FROM flujo_log WHERE seq > ? << 24 AND seq < (? + 1) << 24

-- name: ended
SELECT ended FROM flujo_log WHERE seq = ?

-- name: deltas
SELECT delta FROM flujo_log WHERE seq > ? AND seq <= ? AND delta IS NOT NULL ORDER BY seq

-- name: append
INSERT OR IGNORE INTO flujo_log
SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14
WHERE EXISTS (SELECT 1 FROM flujo_run WHERE key = ?1 >> 24 AND fence = ?15)
  AND (?1 & 16777215 = 1 OR EXISTS (SELECT 1 FROM flujo_log WHERE seq = ?1 - 1))

-- name: snapshot
SELECT text, sum FROM flujo_snapshot WHERE seq = ?

-- name: put_snapshot
INSERT INTO flujo_snapshot VALUES (?, ?, ?)

-- name: finish
UPDATE flujo_run
SET status = ?, rev = ?, updated_at = ?, busy = ?, error_message = ?, due_at = ?, fence = NULL, owner = NULL
WHERE key = ? AND fence = ?

-- name: set_free
UPDATE flujo_run SET status = ?, fence = NULL, owner = NULL WHERE key = ? AND fence = ?

-- name: owner
SELECT machine, boot, beat_at, host, pid FROM flujo_owner WHERE id = ?

-- name: owners
SELECT id, machine, boot, beat_at FROM flujo_owner

-- name: add_owner
INSERT INTO flujo_owner (machine, boot, host, pid, started_at, beat_at) VALUES (?, ?, ?, ?, ?, ?) RETURNING id

-- name: drop_owner
DELETE FROM flujo_owner WHERE id = ?

-- name: beat
UPDATE flujo_owner SET beat_at = ? WHERE id = ?

-- name: list_of_status
SELECT * FROM (
    SELECT r.key, r.updated_at FROM flujo_run AS r
    WHERE {filter}
    ORDER BY r.updated_at DESC, r.key DESC LIMIT :most
)

-- name: list_runs
SELECT r.run_id, r.pipeline_id, r.pipeline_name, r.pipeline_version, r.status, h.idx, r.total_steps,
       iif(r.status = 'running', NULL, r.error_message), r.created_at, h.at, h.busy,
       iif(r.status = 'paused', r.due_at, NULL)
FROM ({found} ORDER BY 2 DESC, 1 DESC LIMIT :limit OFFSET :offset) AS f
JOIN flujo_run AS r ON r.key = f.key
JOIN flujo_log AS h
    ON h.seq = (SELECT max(seq) FROM flujo_log WHERE seq > r.key << 24 AND seq < (r.key + 1) << 24)
ORDER BY f.updated_at DESC, f.key DESC

-- name: count_runs
SELECT {by}, count(*), sum(r.busy) FROM flujo_run AS r
WHERE (r.status <> 'running' OR EXISTS (SELECT 1 FROM flujo_log WHERE seq > r.key << 24 AND seq < (r.key + 1) << 24))
  AND {filter}
GROUP BY 1

-- name: failed
SELECT run_id, error_message, updated_at FROM flujo_run WHERE status = 'failed'
ORDER BY updated_at DESC, key DESC LIMIT ?

-- name: shapes
SELECT r.pipeline_id, r.pipeline_name, r.pipeline_version, s.fingerprint, r.run_id, (
    SELECT iif(instr(rest, CAST('"migrated"' AS BLOB)), rest, NULL) FROM flujo_log
    WHERE seq > r.key << 24 AND seq < (r.key + 1) << 24 ORDER BY seq DESC LIMIT 1
)
FROM flujo_run AS r
LEFT JOIN flujo_start AS s ON s.key = coalesce((SELECT start FROM flujo_fork WHERE key = r.key), r.key)
WHERE r.status = '{status}' AND {saved}

-- name: old_runs
SELECT key, run_id, rev FROM flujo_run WHERE status = ? AND updated_at < ? ORDER BY updated_at LIMIT ?

-- name: runs_after
SELECT key, run_id FROM flujo_run WHERE key > ? ORDER BY key LIMIT ?

-- name: recent
SELECT count(*) FROM flujo_run AS r
WHERE r.status = ?1 AND r.updated_at >= ?2
  AND (?1 <> 'running' OR EXISTS (SELECT 1 FROM flujo_log WHERE seq > r.key << 24 AND seq < (r.key + 1) << 24))

-- name: put_mail
INSERT INTO flujo_mail (seq, id, kind, name, body, author, reason, at, sum, run) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)

-- name: next_mail
SELECT max(?, coalesce((SELECT max(seq) FROM flujo_mail), 0),
           coalesce((SELECT max(seq) FROM sqlite_sequence WHERE name = 'flujo_mail'), 0)) + 1

-- name: mail
SELECT seq, id, kind, name, body, author, reason, at, sum FROM flujo_mail WHERE run = ? AND seq > ?
ORDER BY seq LIMIT ?

-- name: mail_before
SELECT seq, id, kind, name, body, author, reason, at, sum FROM flujo_mail WHERE run = ? AND seq < ?
ORDER BY seq DESC LIMIT 1

-- name: mail_of_id
SELECT seq, id, kind, name, body, author, reason, at, sum FROM flujo_mail WHERE run = ? AND id = ?

-- name: mail_beginning
SELECT seq, id, kind, name, body, author, reason, at, sum FROM flujo_mail WHERE run = ? AND id >= ? AND id < ?
ORDER BY seq

-- name: count_mail
SELECT count(*) FROM flujo_mail WHERE run = ? AND seq > ?

-- name: move_mail
UPDATE flujo_mail SET run = ? WHERE run = ?

-- name: drop_mail
DELETE FROM flujo_mail WHERE run = ?

-- name: newest_of_all
SELECT max(seq) FROM flujo_mail

-- name: news
SELECT run, max(seq) FROM flujo_mail WHERE seq > ? GROUP BY run

-- name: set_due
UPDATE flujo_run SET due_at = ? WHERE key = ?
