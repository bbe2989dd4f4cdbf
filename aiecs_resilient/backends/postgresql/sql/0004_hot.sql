-- The two writes that applications make all the time, a message and a counter, in as few statements as possible: a large
-- function costs more than the writes themselves. Whatever is not plain (a first write to a key, a repeat, an expiry, a
-- refusal) is left to aiecs.apply in the same call. If the same identity arrives twice at the same moment, the second
-- meets unique_violation, and its caller asks aiecs.apply.

-- The clock of an existing key moves as aiecs.apply would move it; NULL if this write is not plain.
CREATE FUNCTION aiecs.tick(
  p_key text, p_op_id bytea, p_stamp bigint, p_replay boolean, p_epoch bigint, p_home text, p_expires_at bigint,
  p_now bigint, p_max_age bigint, p_inc bytea, p_needs_session boolean, OUT stamp bigint, OUT inc bytea
) LANGUAGE plpgsql AS $$
BEGIN
  IF current_setting('transaction_isolation') <> 'read committed' THEN
    RETURN;  -- aiecs.apply says why not
  END IF;
  IF p_epoch <> 0 THEN
    PERFORM pg_advisory_xact_lock_shared(1095321923, hashtext('aiecs.fence'));
  END IF;
  UPDATE aiecs.keys k
     SET clock = CASE WHEN p_replay THEN greatest(k.clock, p_stamp)
                      ELSE greatest(least(p_stamp, p_now + 1000000), k.clock + 1) END,
         session_expires = greatest(k.session_expires, p_expires_at),
         has_session = k.has_session OR NOT p_needs_session
   WHERE k.key = p_key
     AND CASE WHEN p_replay THEN p_stamp > k.session_dead
              ELSE p_stamp >= p_now - p_max_age
                   AND greatest(least(p_stamp, p_now + 1000000), k.clock + 1) > k.session_dead
                   AND NOT (0 < k.session_expires AND k.session_expires <= p_now AND k.session_dead < k.session_expires)
                   AND NOT (0 < k.thread_expires AND k.thread_expires <= p_now AND k.thread_dead < k.thread_expires) END
     AND (p_epoch = 0 OR EXISTS (SELECT FROM aiecs.store x WHERE
           CASE WHEN p_replay THEN p_epoch >= x.epoch ELSE p_epoch = x.epoch AND p_home = x.leader END))
     AND (NOT p_needs_session OR EXISTS (
           SELECT FROM aiecs.sessions x WHERE x.key = p_key AND x.inc = coalesce(p_inc, k.current_inc)))
     AND NOT EXISTS (SELECT FROM aiecs.records r WHERE r.key = p_key AND r.op_id = p_op_id)
  RETURNING CASE WHEN p_replay THEN p_stamp ELSE k.clock END, coalesce(p_inc, k.current_inc) INTO tick.stamp, tick.inc;
END $$;

CREATE FUNCTION aiecs.append(
  p_key text, p_id text, p_op_id bytea, p_fingerprint bytea, p_occurred_at bigint, p_stamp bigint, p_replay boolean,
  p_rank bigint, p_epoch bigint, p_home text, p_mark boolean, p_expires_at bigint, p_answer jsonb,
  p_role text, p_content text, p_metadata bytea, p_now bigint, p_max_age bigint, p_retention bigint, p_versions integer
) RETURNS SETOF aiecs.result LANGUAGE plpgsql AS $$
DECLARE
  v_now bigint := coalesce(p_now, aiecs.now_us());
  v_stamp bigint;
BEGIN
  SELECT t.stamp INTO v_stamp FROM aiecs.tick(p_key, p_op_id, p_stamp, p_replay, p_epoch, p_home, p_expires_at, v_now,
                                              p_max_age, NULL, false) t;
  IF v_stamp IS NULL THEN
    RETURN QUERY SELECT * FROM aiecs.apply(ARRAY[p_key], ARRAY[p_id], ARRAY[p_op_id], ARRAY['message'],
      ARRAY[p_fingerprint], ARRAY[p_occurred_at], ARRAY[p_stamp], ARRAY[p_replay], ARRAY[p_rank], ARRAY[p_epoch],
      ARRAY[p_home], ARRAY[p_mark], ARRAY[NULL]::bigint[], ARRAY[p_expires_at], ARRAY[p_answer], ARRAY[1]::smallint[],
      ARRAY[true], ARRAY[NULL]::jsonb[], ARRAY[p_role], ARRAY[p_content], ARRAY[NULL]::bytea[], ARRAY[p_metadata], ARRAY[false],
      p_epoch <> 0, v_now, p_max_age, p_retention, p_versions);
    RETURN;
  END IF;
  INSERT INTO aiecs.records (key, op_id, kind, stamp, rank, home, marked, fingerprint, occurred_at, seen_at, expires_at,
    format, answer, effect, held, position, role, content, metadata)
  VALUES (p_key, p_op_id, 'message', v_stamp, p_rank, p_home, p_mark, p_fingerprint, p_occurred_at, v_now, p_expires_at,
    1, p_answer, '{}', true, v_stamp, p_role, p_content, p_metadata);
  RETURN QUERY SELECT 1::bigint, 'applied', v_stamp, p_rank, p_answer, '{}'::jsonb, p_occurred_at, p_expires_at,
    false, false, NULL, NULL, NULL::bytea, NULL::bytea, NULL;
END $$;

CREATE FUNCTION aiecs.count_up(
  p_key text, p_id text, p_op_id bytea, p_fingerprint bytea, p_occurred_at bigint, p_stamp bigint, p_replay boolean,
  p_rank bigint, p_epoch bigint, p_home text, p_mark boolean, p_expires_at bigint, p_answer jsonb,
  p_body jsonb, p_inc bytea, p_requests bigint, p_time_us bigint, p_errors bigint,
  p_now bigint, p_max_age bigint, p_retention bigint, p_versions integer
) RETURNS SETOF aiecs.result LANGUAGE plpgsql AS $$
DECLARE
  v_now bigint := coalesce(p_now, aiecs.now_us());
  v_stamp bigint;
  v_inc bytea;
  v_effect jsonb;
BEGIN
  SELECT t.stamp, t.inc INTO v_stamp, v_inc FROM aiecs.tick(p_key, p_op_id, p_stamp, p_replay, p_epoch, p_home,
                                                            p_expires_at, v_now, p_max_age, p_inc, true) t;
  IF v_stamp IS NULL THEN
    RETURN QUERY SELECT * FROM aiecs.apply(ARRAY[p_key], ARRAY[p_id], ARRAY[p_op_id], ARRAY['update'],
      ARRAY[p_fingerprint], ARRAY[p_occurred_at], ARRAY[p_stamp], ARRAY[p_replay], ARRAY[p_rank], ARRAY[p_epoch],
      ARRAY[p_home], ARRAY[p_mark], ARRAY[NULL]::bigint[], ARRAY[p_expires_at], ARRAY[p_answer], ARRAY[1]::smallint[],
      ARRAY[true], ARRAY[p_body], ARRAY[NULL], ARRAY[NULL], ARRAY[NULL]::bytea[], ARRAY[NULL]::bytea[], ARRAY[false],
      p_epoch <> 0, v_now, p_max_age, p_retention, p_versions);
    RETURN;
  END IF;
  UPDATE aiecs.sessions x
     SET requests = x.requests + p_requests, time_us = x.time_us + p_time_us, errors = x.errors + p_errors,
         touched = greatest(x.touched, v_stamp),
         touched_at = CASE WHEN (v_stamp, p_occurred_at) > (x.touched, x.touched_at) THEN p_occurred_at ELSE x.touched_at END
   WHERE x.key = p_key AND x.inc = v_inc;
  IF NOT FOUND THEN  -- deleted at this very moment
    RAISE EXCEPTION 'incarnation vanished' USING ERRCODE = 'unique_violation';
  END IF;
  v_effect := p_body || jsonb_build_object('inc', encode(v_inc, 'hex'));
  INSERT INTO aiecs.records (key, op_id, kind, stamp, rank, home, marked, fingerprint, occurred_at, seen_at, expires_at,
    format, answer, effect, held)
  VALUES (p_key, p_op_id, 'update', v_stamp, p_rank, p_home, p_mark, p_fingerprint, p_occurred_at, v_now, p_expires_at,
    1, p_answer, v_effect, false);
  RETURN QUERY SELECT 1::bigint, 'applied', v_stamp, p_rank, p_answer, v_effect, p_occurred_at, p_expires_at,
    false, false, NULL, NULL, NULL::bytea, NULL::bytea, NULL;
END $$;
