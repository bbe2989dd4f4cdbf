-- All statements, loaded by name. :now in the reads is the caller's clock; what has expired and was not buried since is gone.

-- name: begin
BEGIN IMMEDIATE

-- name: begin_read
BEGIN

-- name: commit
COMMIT

-- name: rollback
ROLLBACK

-- ------------------------------------------------------------------ one key, inside the writer's transaction

-- name: load_key
SELECT id, clock, session_dead, thread_dead, session_expires, thread_expires, current, has_session, has_thread
  FROM keys WHERE place = ?

-- name: insert_key
INSERT INTO keys (place, key) VALUES (?, ?)

-- name: save_key
UPDATE keys SET clock = ?, session_dead = ?, thread_dead = ?, session_expires = ?, thread_expires = ?, current = ?,
       has_session = ?, has_thread = ? WHERE id = ?

-- name: save_standing
UPDATE keys SET status = ?, owner = ? WHERE id = ?

-- name: load_record
SELECT kind, stamp, rank, home, marked, fingerprint, occurred_at, answer, effect, expires_at, format
  FROM records WHERE key = ? AND op_id = ?

-- name: save_record
INSERT INTO records (key, op_id, kind, stamp, rank, home, marked, fingerprint, occurred_at, answer, effect, expires_at,
                     format, held, position, said_at, role, content, metadata)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (key, op_id) DO UPDATE SET
  stamp = excluded.stamp, rank = excluded.rank, marked = excluded.marked, answer = excluded.answer,
  effect = excluded.effect, held = max(held, excluded.held), position = coalesce(excluded.position, position),
  said_at = coalesce(excluded.said_at, said_at), role = coalesce(excluded.role, role),
  content = coalesce(excluded.content, content), metadata = coalesce(excluded.metadata, metadata)

-- name: load_session
SELECT inc, created, user_id, metadata, created_at, requests, time_us, errors, fields, ended_stamp, ended_op,
       ended_status, touched, touched_at
  FROM sessions WHERE key = ? AND inc = ?

-- name: load_sessions
SELECT inc, created, user_id, metadata, created_at, requests, time_us, errors, fields, ended_stamp, ended_op,
       ended_status, touched, touched_at
  FROM sessions WHERE key = ?

-- name: save_session
INSERT OR REPLACE INTO sessions (key, inc, created, user_id, metadata, created_at, requests, time_us, errors, fields,
                                 ended_stamp, ended_op, ended_status, touched, touched_at)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)

-- name: drop_session
DELETE FROM sessions WHERE key = ? AND inc = ?

-- name: load_message
SELECT role, content, metadata FROM records WHERE key = ? AND op_id = ? AND position IS NOT NULL

-- name: drop_messages
UPDATE records SET position = NULL, said_at = NULL, role = NULL, content = NULL, metadata = NULL
 WHERE key = ? AND position IS NOT NULL AND position <= ?

-- name: newest_context
SELECT stamp FROM contexts WHERE key = ? ORDER BY stamp DESC, op_id DESC LIMIT 1

-- name: load_context
SELECT stamp, op_id, occurred_at, value FROM contexts WHERE key = ? AND op_id = ?

-- name: save_context
INSERT OR REPLACE INTO contexts (key, op_id, stamp, occurred_at, value) VALUES (?, ?, ?, ?, ?)

-- name: trim_contexts
DELETE FROM contexts WHERE rowid IN
  (SELECT rowid FROM contexts WHERE key = ? ORDER BY stamp DESC, op_id DESC LIMIT -1 OFFSET ?)

-- name: drop_contexts
DELETE FROM contexts WHERE key = ? AND stamp <= ?

-- name: load_checkpoint
SELECT stamp, op_id, occurred_at, data, metadata, parent FROM checkpoints WHERE key = ? AND ns = ? AND id = ?

-- name: release_checkpoint
UPDATE records SET held = 0 WHERE key = ? AND held AND op_id <> ?
   AND op_id = (SELECT c.op_id FROM checkpoints c WHERE c.key = records.key AND c.ns = ? AND c.id = ?)

-- name: save_checkpoint
INSERT OR REPLACE INTO checkpoints (key, ns, id, stamp, op_id, occurred_at, data, metadata, parent)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)

-- name: checkpoint_ids
SELECT id FROM checkpoints WHERE key = ? AND ns = ? AND data IS NOT NULL ORDER BY stamp DESC, op_id DESC

-- name: load_writes
SELECT stamp, op_id, occurred_at, path, value FROM writes WHERE key = ? AND ns = ? AND id = ? AND task = ?

-- name: save_writes
INSERT OR REPLACE INTO writes (key, ns, id, task, stamp, op_id, occurred_at, path, value)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)

-- name: drop_writes
DELETE FROM writes WHERE key = ? AND ns = ? AND id = ? AND stamp <= ?

-- name: release_checkpoints
UPDATE records SET held = 0 WHERE key = ? AND held
   AND op_id IN (SELECT op_id FROM checkpoints WHERE key = ? AND stamp <= ?)

-- name: drop_checkpoints
DELETE FROM checkpoints WHERE key = ? AND stamp <= ?

-- name: drop_all_writes
DELETE FROM writes WHERE key = ? AND stamp <= ?

-- name: holds_session
SELECT EXISTS (SELECT 1 FROM records WHERE key = k.key AND position IS NOT NULL)
    OR EXISTS (SELECT 1 FROM contexts WHERE key = k.key)
  FROM (SELECT ? AS key) k

-- name: holds_thread
SELECT EXISTS (SELECT 1 FROM writes WHERE key = k.key)
    OR EXISTS (SELECT 1 FROM checkpoints WHERE key = k.key AND data IS NOT NULL)
  FROM (SELECT ? AS key) k

-- ------------------------------------------------------------------ the store, inside the writer's transaction

-- name: load_meta
SELECT value FROM meta WHERE name = ?

-- name: save_meta
INSERT OR REPLACE INTO meta (name, value) VALUES (?, ?)

-- name: close_mark
UPDATE records SET marked = 0
 WHERE key = (SELECT id FROM keys WHERE place = ?) AND op_id = ? AND stamp = ? AND rank = ? AND marked

-- name: forget_records
DELETE FROM records WHERE rowid IN
  (SELECT rowid FROM records WHERE position IS NULL AND NOT held AND NOT marked AND stamp < ? LIMIT ?)

-- ------------------------------------------------------------------ reads

-- name: read_session
SELECT k.clock, s.inc, s.created, s.user_id, s.metadata, s.created_at, s.requests, s.time_us, s.errors, s.fields,
       s.ended_stamp, s.ended_op, s.ended_status, s.touched, s.touched_at
  FROM keys k LEFT JOIN sessions s ON s.key = k.id AND s.inc = k.current
   AND (k.session_expires = 0 OR k.session_expires > :now OR k.session_dead >= k.session_expires)
 WHERE k.place = :place

-- name: read_session_key
SELECT id, clock, session_expires = 0 OR session_expires > :now OR session_dead >= session_expires
  FROM keys WHERE place = :place

-- name: read_thread_key
SELECT id, clock, thread_expires = 0 OR thread_expires > :now OR thread_dead >= thread_expires
  FROM keys WHERE place = :place

-- name: read_newest_messages
SELECT op_id, position, role, content, metadata, said_at FROM records
 WHERE key = :key AND position IS NOT NULL AND position < :before AND position > :after
 ORDER BY position DESC, op_id DESC LIMIT :limit

-- name: read_oldest_messages
SELECT op_id, position, role, content, metadata, said_at FROM records
 WHERE key = :key AND position IS NOT NULL AND position < :before AND position > :after
 ORDER BY position, op_id LIMIT :limit

-- name: read_checkpoint
SELECT id, stamp, data, metadata, occurred_at, parent FROM checkpoints
 WHERE key = ? AND ns = ? AND id = ? AND data IS NOT NULL

-- name: read_checkpoints
SELECT id, stamp, data, metadata, occurred_at, parent FROM checkpoints
 WHERE key = ? AND ns = ? AND data IS NOT NULL ORDER BY stamp DESC, op_id DESC LIMIT ?

-- name: read_writes
SELECT value FROM writes WHERE key = ? AND ns = ? AND id = ? ORDER BY stamp, op_id

-- name: read_contexts
SELECT stamp, value, occurred_at FROM contexts WHERE key = ? ORDER BY stamp DESC, op_id DESC LIMIT ?

-- name: list_sessions
SELECT k.key, s.inc, s.created, s.user_id, s.metadata, s.created_at, s.requests, s.time_us, s.errors, s.fields,
       s.ended_stamp, s.ended_op, s.ended_status, s.touched, s.touched_at
  FROM keys k CROSS JOIN sessions s ON s.key = k.id AND s.inc = k.current
 WHERE k.status IS NOT NULL AND k.place > :after
   AND (k.session_expires = 0 OR k.session_expires > :now OR k.session_dead >= k.session_expires)
 ORDER BY k.place LIMIT :limit

-- name: list_sessions_by_status
SELECT k.key, s.inc, s.created, s.user_id, s.metadata, s.created_at, s.requests, s.time_us, s.errors, s.fields,
       s.ended_stamp, s.ended_op, s.ended_status, s.touched, s.touched_at
  FROM keys k CROSS JOIN sessions s ON s.key = k.id AND s.inc = k.current
 WHERE k.status = :status AND k.place > :after
   AND (k.session_expires = 0 OR k.session_expires > :now OR k.session_dead >= k.session_expires)
 ORDER BY k.place LIMIT :limit

-- name: list_sessions_by_owner
SELECT k.key, s.inc, s.created, s.user_id, s.metadata, s.created_at, s.requests, s.time_us, s.errors, s.fields,
       s.ended_stamp, s.ended_op, s.ended_status, s.touched, s.touched_at
  FROM keys k INDEXED BY keys_by_owner CROSS JOIN sessions s ON s.key = k.id AND s.inc = k.current
 WHERE k.owner = :owner AND k.status IS NOT NULL AND (:status IS NULL OR k.status = :status) AND k.place > :after
   AND (k.session_expires = 0 OR k.session_expires > :now OR k.session_dead >= k.session_expires)
 ORDER BY k.place LIMIT :limit

-- name: list_threads
SELECT k.key FROM keys k INDEXED BY keys_with_thread
 WHERE k.has_thread AND k.place > :after
   AND (k.thread_expires = 0 OR k.thread_expires > :now OR k.thread_dead >= k.thread_expires)
   AND EXISTS (SELECT 1 FROM checkpoints c WHERE c.key = k.id AND c.ns = '' AND c.data IS NOT NULL)
 ORDER BY k.place LIMIT :limit

-- name: read_outcome
SELECT answer FROM records WHERE key = (SELECT id FROM keys WHERE place = ?) AND op_id = ?

-- name: count_sessions
SELECT count(*), coalesce(sum(s.ended_stamp IS NULL), 0)
  FROM keys k CROSS JOIN sessions s ON s.key = k.id AND s.inc = k.current
 WHERE k.status IS NOT NULL
   AND (k.session_expires = 0 OR k.session_expires > :now OR k.session_dead >= k.session_expires)

-- name: count_messages
SELECT count(*) FROM records WHERE position IS NOT NULL

-- name: count_checkpoints
SELECT count(*) FROM checkpoints WHERE ns = '' AND data IS NOT NULL

-- ------------------------------------------------------------------ replication

-- name: read_open_records
SELECT k.key, k.id, r.op_id, r.kind, r.stamp, r.rank, r.home, r.fingerprint, r.occurred_at, r.answer, r.effect,
       r.expires_at, r.format
  FROM records r INDEXED BY records_marked CROSS JOIN keys k ON k.id = r.key
 WHERE r.marked AND r.stamp >= :since AND (r.stamp, r.key, r.op_id) > (:stamp, :key, :op_id)
 ORDER BY r.stamp, r.key, r.op_id LIMIT :limit

-- name: read_next_key
SELECT id, key FROM keys WHERE id >= :key AND clock >= :since ORDER BY id LIMIT 1

-- name: read_key_records
SELECT * FROM (
  SELECT op_id, kind, stamp, rank, home, fingerprint, occurred_at, answer, effect, expires_at, format FROM records
   WHERE key = :key AND position IS NOT NULL AND position >= :since AND (position, op_id) > (:stamp, :op_id)
   ORDER BY position, op_id LIMIT :limit)
UNION ALL
SELECT * FROM (
  SELECT op_id, kind, stamp, rank, home, fingerprint, occurred_at, answer, effect, expires_at, format FROM records
   WHERE key = :key AND position IS NULL AND stamp >= :since AND (stamp, op_id) > (:stamp, :op_id)
   ORDER BY stamp, op_id LIMIT :limit)
ORDER BY stamp, op_id LIMIT :limit

-- name: read_idle
SELECT key, clock, 'all' FROM keys WHERE has_session AND clock < :before ORDER BY clock LIMIT :limit

-- name: read_expired_sessions
SELECT key, session_expires + 1, 'session' FROM keys
 WHERE has_session AND session_expires > 0 AND session_expires <= :now AND session_dead < session_expires
   AND clock >= :before ORDER BY session_expires LIMIT :limit

-- name: read_expired_threads
SELECT key, thread_expires + 1, 'thread' FROM keys
 WHERE has_thread AND thread_expires > 0 AND thread_expires <= :now AND thread_dead < thread_expires
 ORDER BY thread_expires LIMIT :limit

-- name: count_marks
SELECT count(*), coalesce(min(stamp), 0) FROM (
  SELECT stamp FROM records WHERE marked ORDER BY stamp LIMIT 10000)
