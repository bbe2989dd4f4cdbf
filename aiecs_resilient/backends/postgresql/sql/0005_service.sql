-- What stands beside the writes: routing, marks, clean-up, pruning, figures, and the views for people.

-- Compare-and-set of the route. The exclusive lock waits for every write that has passed the fence, and holds back the next.
CREATE FUNCTION aiecs.move_route(p_expected bigint, p_epoch bigint, p_leader text)
RETURNS TABLE (epoch bigint, leader text) LANGUAGE plpgsql AS $$
BEGIN
  PERFORM pg_advisory_xact_lock(1095321923, hashtext('aiecs.fence'));
  UPDATE aiecs.store x SET epoch = p_epoch, leader = p_leader WHERE x.epoch = p_expected AND p_epoch > p_expected;
  RETURN QUERY SELECT x.epoch, x.leader FROM aiecs.store x;
END $$;

-- Marks are closed lazily: losing this to a crash repeats a replay, so no disk is waited for, and rows in use are left
-- for the next time, so that no write waits and no deadlock can arise.
CREATE FUNCTION aiecs.close_marks(p_key text[], p_op_id bytea[], p_stamp bigint[], p_rank bigint[]) RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE
  v_closed bigint;
BEGIN
  PERFORM set_config('synchronous_commit', 'off', true);
  WITH chosen AS (
    SELECT r.key, r.op_id FROM aiecs.records r
      JOIN unnest(p_key, p_op_id, p_stamp, p_rank) AS u (key, op_id, stamp, rank)
        ON r.key = u.key AND r.op_id = u.op_id AND r.stamp = u.stamp AND r.rank = u.rank
     WHERE r.marked FOR UPDATE OF r SKIP LOCKED)
  UPDATE aiecs.records r SET marked = false FROM chosen WHERE r.key = chosen.key AND r.op_id = chosen.op_id;
  GET DIAGNOSTICS v_closed = ROW_COUNT;
  RETURN v_closed;
END $$;

-- One bounded step: identities past retention that no row needs, then incarnations that a later create replaced.
-- How many rows went; -1 while another process is at it.
CREATE FUNCTION aiecs.prune(p_now bigint, p_retention bigint, p_limit integer) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
  v_horizon bigint := coalesce(p_now, aiecs.now_us()) - p_retention;
  v_records bigint;
  v_sessions bigint;
BEGIN
  IF NOT pg_try_advisory_xact_lock(1095321923, hashtext('aiecs.prune')) THEN
    RETURN -1;
  END IF;
  PERFORM set_config('synchronous_commit', 'off', true);
  DELETE FROM aiecs.records r USING (
    SELECT o.key, o.op_id FROM aiecs.records o WHERE NOT o.held AND NOT o.marked AND o.seen_at < v_horizon
     ORDER BY o.seen_at LIMIT p_limit FOR UPDATE SKIP LOCKED) old
   WHERE r.key = old.key AND r.op_id = old.op_id;
  GET DIAGNOSTICS v_records = ROW_COUNT;
  DELETE FROM aiecs.sessions x USING (
    SELECT o.key, o.inc FROM aiecs.sessions o WHERE o.superseded AND o.touched < v_horizon
     LIMIT p_limit FOR UPDATE SKIP LOCKED) old
   WHERE x.key = old.key AND x.inc = old.inc;
  GET DIAGNOSTICS v_sessions = ROW_COUNT;
  RETURN v_records + v_sessions;
END $$;

-- Totals, exact up to p_exact rows, above that from the planner's statistics.
CREATE FUNCTION aiecs.totals(p_now bigint, p_exact integer)
RETURNS TABLE (sessions bigint, active bigint, messages bigint, checkpoints bigint, exact boolean)
LANGUAGE plpgsql STABLE AS $$
DECLARE
  v_now bigint := coalesce(p_now, aiecs.now_us());
BEGIN
  SELECT count(*), count(*) FILTER (WHERE t.ended IS NULL) INTO sessions, active FROM (
    SELECT x.ended FROM aiecs.sessions x JOIN aiecs.keys k ON k.key = x.key AND k.current_inc = x.inc
     WHERE NOT (k.session_expires > 0 AND k.session_expires <= v_now) LIMIT p_exact + 1) t;
  SELECT count(*) INTO messages FROM (
    SELECT FROM aiecs.records r WHERE r.position IS NOT NULL LIMIT p_exact + 1) t;
  SELECT count(*) INTO checkpoints FROM (
    SELECT FROM aiecs.checkpoints c WHERE c.data IS NOT NULL AND c.ns = '' LIMIT p_exact + 1) t;
  exact := greatest(sessions, messages, checkpoints) <= p_exact;
  IF sessions > p_exact THEN
    SELECT greatest(sessions, c.reltuples::bigint) INTO sessions FROM pg_class c WHERE c.oid = 'aiecs.sessions'::regclass;
    active := sessions * coalesce((SELECT p.null_frac FROM pg_stats p WHERE p.attname = 'ended'
      AND format('%I.%I', p.schemaname, p.tablename)::regclass = 'aiecs.sessions'::regclass), active::float / p_exact);
  END IF;
  IF messages > p_exact THEN
    SELECT greatest(messages, c.reltuples::bigint) INTO messages
      FROM pg_class c WHERE c.oid = 'aiecs.records_history'::regclass;
  END IF;
  IF checkpoints > p_exact THEN
    SELECT greatest(checkpoints, c.reltuples::bigint) INTO checkpoints
      FROM pg_class c WHERE c.oid = 'aiecs.checkpoints_latest'::regclass;
  END IF;
  RETURN NEXT;
END $$;

-- An identity as readable text.
CREATE FUNCTION aiecs.readable(p_id bytea) RETURNS text LANGUAGE sql IMMUTABLE AS
$$ SELECT CASE WHEN position('\x00'::bytea IN p_id) = 0 THEN convert_from(p_id, 'UTF8') ELSE encode(p_id, 'escape') END $$;

CREATE FUNCTION aiecs.as_time(p_us bigint) RETURNS timestamptz LANGUAGE sql IMMUTABLE AS
$$ SELECT 'epoch'::timestamptz + p_us * interval '1 microsecond' $$;

-- For people with plain SQL: sessions that have not expired, and messages in their order.
CREATE VIEW aiecs.readable_sessions AS
SELECT k.id AS session_id,
       coalesce(x.set_owner, x.user_id) AS user_id,
       coalesce(x.ended_status, x.set_status, 'active') AS status,
       x.requests AS request_count,
       x.time_us / 1e6 AS total_processing_time,
       x.errors AS error_count,
       aiecs.as_time(x.created_at) AS created_at,
       aiecs.as_time(x.touched_at) AS updated_at,
       k.key
  FROM aiecs.keys k JOIN aiecs.sessions x ON x.key = k.key AND x.inc = k.current_inc
 WHERE k.session_expires = 0 OR k.session_expires > aiecs.statement_us();

CREATE VIEW aiecs.readable_messages AS
SELECT k.id AS session_id, r.position, r.role, r.content,
       aiecs.as_time(coalesce(r.message_at, r.occurred_at)) AS said_at,
       aiecs.readable(r.op_id) AS message_id, r.key
  FROM aiecs.records r JOIN aiecs.keys k ON k.key = r.key
 WHERE r.position IS NOT NULL AND (k.session_expires = 0 OR k.session_expires > aiecs.statement_us());
