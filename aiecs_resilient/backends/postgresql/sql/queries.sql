-- The reads, one round trip each, loaded by name. Every read of one key begins with the clock of that key, in the same
-- snapshot as the rows; without rows the clock still comes. A time parameter that is NULL means the server's clock.

-- name: apply
SELECT * FROM aiecs.apply($1::text[], $2::text[], $3::bytea[], $4::text[], $5::bytea[], $6::bigint[], $7::bigint[],
  $8::boolean[], $9::bigint[], $10::bigint[], $11::text[], $12::boolean[], $13::bigint[], $14::bigint[], $15::jsonb[],
  $16::smallint[], $17::boolean[], $18::jsonb[], $19::text[], $20::text[], $21::bytea[], $22::bytea[], $23::boolean[],
  $24::boolean, $25::bigint, $26::bigint, $27::bigint, $28::integer)

-- name: append
SELECT * FROM aiecs.append($1::text, $2::text, $3::bytea, $4::bytea, $5::bigint, $6::bigint, $7::boolean, $8::bigint,
  $9::bigint, $10::text, $11::boolean, $12::bigint, $13::jsonb, $14::text, $15::text, $16::bytea,
  $17::bigint, $18::bigint, $19::bigint, $20::integer)

-- name: append_many
SELECT aiecs.append_many($1::text[], $2::text[], $3::bytea[], $4::bytea[], $5::bigint[], $6::bigint[], $7::bigint[],
  $8::boolean[], $9::bigint[], $10::text[], $11::text[], $12::bytea[], $13::boolean, $14::bigint, $15::text,
  $16::bigint, $17::bigint)

-- name: count_up
SELECT * FROM aiecs.count_up($1::text, $2::text, $3::bytea, $4::bytea, $5::bigint, $6::bigint, $7::boolean, $8::bigint,
  $9::bigint, $10::text, $11::boolean, $12::bigint, $13::jsonb, $14::jsonb, $15::bytea, $16::bigint, $17::bigint,
  $18::bigint, $19::bigint, $20::bigint, $21::bigint, $22::integer)

-- name: read_session
SELECT k.clock, x.inc, x.created, x.user_id, x.metadata, x.created_at, x.requests, x.time_us, x.errors, x.fields,
       x.ended, x.ended_by, x.ended_status, x.touched, x.touched_at
  FROM aiecs.keys k LEFT JOIN aiecs.sessions x ON x.key = k.key AND x.inc = k.current_inc
   AND (k.session_expires = 0 OR k.session_expires > coalesce($2::bigint, aiecs.statement_us()))
 WHERE k.key = $1::text

-- name: read_sessions
SELECT x.inc, x.created, x.user_id, x.metadata, x.created_at, x.requests, x.time_us, x.errors, x.fields,
       x.ended, x.ended_by, x.ended_status, x.touched, x.touched_at
  FROM unnest($1::text[]) WITH ORDINALITY AS u (key, n) LEFT JOIN aiecs.keys k ON k.key = u.key
   AND (k.session_expires = 0 OR k.session_expires > coalesce($2::bigint, aiecs.statement_us()))
  LEFT JOIN aiecs.sessions x ON x.key = k.key AND x.inc = k.current_inc
 ORDER BY u.n

-- name: read_newest_messages
SELECT k.clock, r.op_id, r.position, r.role, r.content, r.metadata, r.said_at
  FROM aiecs.keys k LEFT JOIN LATERAL (
    SELECT o.op_id, o.position, o.role, o.content, o.metadata, coalesce(o.message_at, o.occurred_at) AS said_at
      FROM aiecs.records o WHERE o.key = $1::text AND o.position IS NOT NULL AND o.position < $2::bigint
       AND (k.session_expires = 0 OR k.session_expires > coalesce($4::bigint, aiecs.statement_us()))
     ORDER BY o.position DESC, o.op_id DESC LIMIT $3::bigint) r ON true
 WHERE k.key = $1::text

-- name: read_messages_after
SELECT k.clock, r.op_id, r.position, r.role, r.content, r.metadata, r.said_at
  FROM aiecs.keys k LEFT JOIN LATERAL (
    SELECT o.op_id, o.position, o.role, o.content, o.metadata, coalesce(o.message_at, o.occurred_at) AS said_at
      FROM aiecs.records o WHERE o.key = $1::text AND o.position IS NOT NULL AND o.position < $2::bigint
       AND o.position > $5::bigint
       AND (k.session_expires = 0 OR k.session_expires > coalesce($4::bigint, aiecs.statement_us()))
     ORDER BY o.position, o.op_id LIMIT $3::bigint) r ON true
 WHERE k.key = $1::text

-- name: read_checkpoint
SELECT k.clock, c.id, c.id_full, c.stamp, c.data, c.metadata, c.occurred_at, c.parent
  FROM aiecs.keys k LEFT JOIN aiecs.checkpoints c ON c.key = k.key AND c.ns = $2::text AND c.id = $3::text
   AND c.data IS NOT NULL AND (k.thread_expires = 0 OR k.thread_expires > coalesce($4::bigint, aiecs.statement_us()))
 WHERE k.key = $1::text

-- name: read_checkpoints
SELECT k.clock, c.id, c.id_full, c.stamp, c.data, c.metadata, c.occurred_at, c.parent, c.op_id
  FROM aiecs.keys k LEFT JOIN LATERAL (
    SELECT o.* FROM aiecs.checkpoints o WHERE o.key = $1::text AND o.ns = $2::text AND o.data IS NOT NULL
       AND (k.thread_expires = 0 OR k.thread_expires > coalesce($4::bigint, aiecs.statement_us()))
     ORDER BY o.stamp DESC, o.op_id DESC LIMIT $3::bigint) c ON true
 WHERE k.key = $1::text

-- name: read_writes
SELECT k.clock, w.value, w.stamp, w.op_id
  FROM aiecs.keys k LEFT JOIN aiecs.writes w ON w.key = k.key AND w.ns = $2::text AND w.id = $3::text
   AND (k.thread_expires = 0 OR k.thread_expires > coalesce($4::bigint, aiecs.statement_us()))
 WHERE k.key = $1::text
 ORDER BY w.stamp, w.op_id

-- name: read_contexts
SELECT k.clock, c.stamp, c.value, c.occurred_at
  FROM aiecs.keys k LEFT JOIN aiecs.contexts c ON c.key = k.key
   AND (k.session_expires = 0 OR k.session_expires > coalesce($3::bigint, aiecs.statement_us()))
 WHERE k.key = $1::text
 ORDER BY c.stamp DESC, c.op_id DESC LIMIT $2::bigint

-- name: read_outcome
SELECT EXISTS (SELECT FROM aiecs.records r WHERE r.key = $1::text AND r.op_id = $2::bytea
   AND r.answer NOT IN ('false'::jsonb, '0'::jsonb))

-- name: list_sessions
SELECT k.id, x.inc, x.created, x.user_id, x.metadata, x.created_at, x.requests, x.time_us, x.errors, x.fields,
       x.ended, x.ended_by, x.ended_status, x.touched, x.touched_at
  FROM aiecs.sessions x JOIN aiecs.keys k ON k.key = x.key AND k.current_inc = x.inc
 WHERE x.key > $1::text COLLATE "C" AND k.key > $1::text COLLATE "C"  -- both, so that either index starts there
   AND (k.session_expires = 0 OR k.session_expires > coalesce($3::bigint, aiecs.statement_us()))
   /*filter*/
 ORDER BY x.key LIMIT $2::bigint

-- name: by_status
   AND hashtextextended(coalesce(x.ended_status, x.set_status, 'active'), 0) = hashtextextended(?::text, 0)
   AND coalesce(x.ended_status, x.set_status, 'active') = ?::text

-- name: by_owner
   AND hashtextextended(coalesce(x.set_owner, x.user_id), 0) = hashtextextended(?::text, 0)
   AND coalesce(x.set_owner, x.user_id) = ?::text

-- name: list_threads
SELECT k.id FROM aiecs.keys k
 WHERE k.has_root AND k.key > $1::text COLLATE "C"
   AND (k.thread_expires = 0 OR k.thread_expires > coalesce($3::bigint, aiecs.statement_us()))
 ORDER BY k.key LIMIT $2::bigint

-- name: read_records
SELECT k.id AS key_id, r.key, r.op_id, r.kind, r.stamp, r.rank, r.home, r.fingerprint, r.occurred_at, r.expires_at,
       r.format, r.answer, r.effect,
       CASE r.kind WHEN 'message' THEN r.position IS NOT NULL WHEN 'context' THEN t.value IS NOT NULL
         WHEN 'checkpoint' THEN c.data IS NOT NULL WHEN 'writes' THEN w.value IS NOT NULL
         ELSE r.effect - 'dead' <> '{}' END AS whole,
       r.role, coalesce(r.content, c.parent, w.path) AS content, coalesce(t.value, c.data, w.value) AS data,
       coalesce(r.metadata, c.metadata) AS metadata
  FROM aiecs.records r JOIN aiecs.keys k ON k.key = r.key
  LEFT JOIN aiecs.contexts t ON r.kind = 'context' AND t.key = r.key AND t.op_id = r.op_id
  LEFT JOIN aiecs.checkpoints c ON r.kind = 'checkpoint' AND c.key = r.key AND c.ns = r.effect->>'ns'
        AND c.id = r.effect->>'id' AND c.op_id = r.op_id AND c.data IS NOT NULL
  LEFT JOIN aiecs.writes w ON r.kind = 'writes' AND w.key = r.key AND w.ns = r.effect->>'ns'
        AND w.id = r.effect->>'id' AND w.task = r.effect->>'task' AND w.op_id = r.op_id
 WHERE r.stamp >= $1::bigint AND (r.stamp, r.key, r.op_id) > ($1::bigint, $2::text COLLATE "C", $3::bytea)
   AND r.effect IS NOT NULL /*open*/
 ORDER BY r.stamp, r.key, r.op_id LIMIT $4::bigint

-- name: read_idle
WITH found AS (
  (SELECT k.id, $1::bigint AS before, 'all' AS scope FROM aiecs.keys k
    WHERE k.has_session AND k.quiet_since <= $1::bigint >> 28 AND k.clock < $1::bigint
    ORDER BY k.quiet_since LIMIT $2::bigint)
  UNION ALL
  (SELECT k.id, k.session_expires + 1, 'session' FROM aiecs.keys k
    WHERE k.has_session AND k.session_due <= coalesce($3::bigint, aiecs.statement_us()) >> 28
      AND k.session_expires <= coalesce($3::bigint, aiecs.statement_us()) AND k.clock >= $1::bigint
    ORDER BY k.session_due LIMIT $2::bigint)
  UNION ALL
  (SELECT k.id, k.thread_expires + 1, 'thread' FROM aiecs.keys k
    WHERE k.has_thread AND k.thread_due <= coalesce($3::bigint, aiecs.statement_us()) >> 28
      AND k.thread_expires <= coalesce($3::bigint, aiecs.statement_us())
      AND NOT (k.has_session AND (k.clock < $1::bigint OR (k.session_due IS NOT NULL
               AND k.session_expires <= coalesce($3::bigint, aiecs.statement_us()))))
    ORDER BY k.thread_due LIMIT $2::bigint))
SELECT * FROM found LIMIT $2::bigint

-- name: close_marks
SELECT aiecs.close_marks($1::text[], $2::bytea[], $3::bigint[], $4::bigint[])

-- name: move_route
SELECT * FROM aiecs.move_route($1::bigint, $2::bigint, $3::text)

-- name: store_state
SELECT x.epoch, x.leader, x.incarnation, aiecs.now_us() AS now_us,
       (SELECT system_identifier FROM pg_control_system()) AS system_id,
       CASE WHEN pg_is_in_recovery() THEN (SELECT timeline_id FROM pg_control_checkpoint())::text
            ELSE substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) END AS timeline,
       pg_postmaster_start_time()::text AS started,
       current_setting('fsync') = 'on' AS fsync,
       current_setting('synchronous_commit') AS synchronous_commit,
       current_setting('synchronous_standby_names') <> '' AS replicated,
       (SELECT count(*) FROM (SELECT FROM aiecs.records r WHERE r.marked LIMIT 10000) t) AS open_marks,
       coalesce((SELECT min(r.stamp) FROM aiecs.records r WHERE r.marked), 0) AS oldest_mark
  FROM aiecs.store x

-- name: totals
SELECT * FROM aiecs.totals($1::bigint, $2::integer)

-- name: prune
SELECT aiecs.prune($1::bigint, $2::bigint, $3::integer)

-- name: pulse
UPDATE aiecs.pulse SET beat = aiecs.now_us()
RETURNING beat, current_setting('fsync') = 'on' AS fsync, current_setting('synchronous_commit') AS synchronous_commit,
          current_setting('synchronous_standby_names') <> '' AS replicated
