-- Applying writes: at most once each, stamped by the store that accepts them. The mirror of backends/_engine.py.

-- What a store says of one write. code 'applied', or why it was refused; whole: the parts in role .. metadata make its effect.
CREATE TYPE aiecs.result AS (
  n bigint, code text, stamp bigint, rank bigint, answer jsonb, effect jsonb, occurred_at bigint, expires_at bigint,
  duplicate boolean, whole boolean, role text, content text, data bytea, metadata bytea, detail text
);

-- The key's row, locked until the transaction ends. A new key gets its row first: it is the lock.
CREATE FUNCTION aiecs.lock_key(p_key text, p_id text, p_horizon bigint, p_versions integer) RETURNS aiecs.state
LANGUAGE plpgsql AS $$
DECLARE
  s aiecs.state;
BEGIN
  FOR attempt IN 1..10 LOOP
    SELECT k.key, k.id, k.clock, k.session_dead, k.thread_dead, k.session_expires, k.thread_expires, k.current_inc,
           k.has_session, k.has_thread, k.has_root, false, false, false, p_horizon, p_versions
      INTO s FROM aiecs.keys k WHERE k.key = p_key FOR UPDATE;
    IF FOUND THEN
      RETURN s;
    END IF;
    INSERT INTO aiecs.keys (key, id) VALUES (p_key, p_id) ON CONFLICT (key) DO NOTHING;
    IF FOUND THEN
      RETURN (p_key, p_id, 0, 0, 0, 0, 0, NULL, false, false, false, true, false, false, p_horizon, p_versions)::aiecs.state;
    END IF;
  END LOOP;
  RAISE EXCEPTION 'key % vanished while it was being locked', p_key USING ERRCODE = 'serialization_failure';
END $$;

CREATE FUNCTION aiecs.save_key(s aiecs.state) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  IF s.changed THEN
    UPDATE aiecs.keys k SET clock = s.clock, session_dead = s.session_dead, thread_dead = s.thread_dead,
           session_expires = s.session_expires, thread_expires = s.thread_expires, current_inc = s.current_inc,
           has_session = s.has_session, has_thread = s.has_thread, has_root = s.has_root
     WHERE k.key = s.key;
  ELSIF s.fresh THEN
    DELETE FROM aiecs.keys k WHERE k.key = s.key;  -- refused: nothing has been changed
  END IF;
END $$;

-- What the peer has to replay for a record: kept with it, or read from the row it made.
CREATE FUNCTION aiecs.effect_of(r aiecs.records) RETURNS aiecs.result LANGUAGE plpgsql AS $$
DECLARE
  e aiecs.result;
BEGIN
  e.effect := r.effect;
  e.whole := false;
  CASE r.kind
    WHEN 'message' THEN
      e.whole := r.position IS NOT NULL;
      e.role := r.role;
      e.content := r.content;
      e.metadata := r.metadata;
    WHEN 'context' THEN
      SELECT true, c.value INTO e.whole, e.data FROM aiecs.contexts c WHERE c.key = r.key AND c.op_id = r.op_id;
    WHEN 'checkpoint' THEN
      SELECT true, c.parent, c.data, c.metadata INTO e.whole, e.content, e.data, e.metadata FROM aiecs.checkpoints c
       WHERE c.key = r.key AND c.ns = r.effect->>'ns' AND c.id = r.effect->>'id' AND c.op_id = r.op_id
         AND c.data IS NOT NULL;
    WHEN 'writes' THEN
      SELECT true, w.path, w.value INTO e.whole, e.content, e.data FROM aiecs.writes w
       WHERE w.key = r.key AND w.ns = r.effect->>'ns' AND w.id = r.effect->>'id' AND w.task = r.effect->>'task'
         AND w.op_id = r.op_id;
    ELSE
      e.whole := r.effect - 'dead' <> '{}';
      e.metadata := r.metadata;
  END CASE;
  e.whole := coalesce(e.whole, false) AND r.effect IS NOT NULL;
  RETURN e;
END $$;

-- Take back what a record did here, as far as its winner will not overwrite it anyway.
CREATE FUNCTION aiecs.withdraw(known aiecs.records) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  x aiecs.sessions;
  v_by text := encode(known.op_id, 'hex');
BEGIN
  IF known.kind = 'prune' THEN
    UPDATE aiecs.checkpoints c SET stamp = 0
     WHERE c.key = known.key AND c.ns = known.effect->>'ns' AND c.op_id = known.op_id
       AND c.id IN (SELECT e->>0 FROM jsonb_array_elements(known.effect->'ids') e);
    RETURN;
  ELSIF known.kind NOT IN ('create', 'update', 'end') OR coalesce(known.effect - 'dead', '{}') = '{}' THEN
    RETURN;
  END IF;
  SELECT * INTO x FROM aiecs.sessions o WHERE o.key = known.key
     AND o.inc = CASE WHEN known.kind = 'create' THEN known.op_id ELSE decode(known.effect->>'inc', 'hex') END;
  IF NOT FOUND THEN
    RETURN;
  END IF;
  IF known.kind = 'update' THEN
    x.requests := x.requests - (known.effect->>'requests')::bigint;
    x.time_us := x.time_us - (known.effect->>'time_us')::bigint;
    x.errors := x.errors - (known.effect->>'errors')::bigint;
    x.set_status := CASE WHEN x.fields->'status'->>1 = v_by THEN NULL ELSE x.set_status END;
    x.set_owner := CASE WHEN x.fields->'user_id'->>1 = v_by THEN NULL ELSE x.set_owner END;
    SELECT coalesce(jsonb_object_agg(f.key, f.value), '{}') INTO x.fields
      FROM jsonb_each(x.fields) f WHERE f.value->>1 <> v_by;
  ELSIF x.ended_by = known.op_id THEN
    x.ended := NULL;
    x.ended_by := NULL;
    x.ended_status := NULL;
  END IF;
  IF x.touched = known.stamp THEN  -- the best that is still known of who touched it last
    SELECT greatest(0, max((f.value->>0)::bigint), x.ended, CASE WHEN known.kind <> 'create' THEN x.created END)
      INTO x.touched FROM jsonb_each(x.fields) f;
  END IF;
  UPDATE aiecs.sessions o SET requests = x.requests, time_us = x.time_us, errors = x.errors, fields = x.fields,
         set_status = x.set_status, set_owner = x.set_owner, ended = x.ended, ended_by = x.ended_by,
         ended_status = x.ended_status, touched = x.touched
   WHERE o.key = x.key AND o.inc = x.inc;
END $$;

-- Both stores accepted it and the other one's version counts: withdraw what ours did, then do theirs, under their stamp.
CREATE FUNCTION aiecs.redo(s aiecs.state, known aiecs.records, m aiecs.mutation) RETURNS aiecs.state
LANGUAGE plpgsql AS $$
DECLARE
  e aiecs.result;
BEGIN
  s.clock := greatest(s.clock, m.stamp);
  s.changed := true;
  IF known.kind NOT IN ('message', 'context', 'checkpoint', 'writes') THEN
    PERFORM aiecs.withdraw(known);
    UPDATE aiecs.records r SET effect = coalesce(m.body, '{}'), metadata = m.metadata
     WHERE r.key = known.key AND r.op_id = known.op_id;
    RETURN CASE WHEN m.whole THEN aiecs.merge(s, m) ELSE s END;
  END IF;
  IF NOT m.whole THEN
    e := aiecs.effect_of(known);
    m.whole := e.whole;
    m.body := e.effect;
    m.role := e.role;
    m.content := e.content;
    m.data := e.data;
    m.metadata := e.metadata;
  END IF;
  IF NOT m.whole THEN
    RETURN s;
  END IF;
  -- The row that this operation made goes below every other stamp, so that its winner finds the place free.
  IF known.kind = 'checkpoint' THEN
    UPDATE aiecs.checkpoints c SET stamp = 0 WHERE c.key = s.key AND c.ns = m.body->>'ns' AND c.id = m.body->>'id'
       AND c.op_id = known.op_id;
  ELSIF known.kind = 'writes' THEN
    UPDATE aiecs.writes w SET stamp = 0 WHERE w.key = s.key AND w.ns = m.body->>'ns' AND w.id = m.body->>'id'
       AND w.task = m.body->>'task' AND w.op_id = known.op_id;
  END IF;
  UPDATE aiecs.records r SET effect = coalesce(m.body, '{}')  -- it may have come without its effect at first
   WHERE r.key = known.key AND r.op_id = known.op_id;
  s := aiecs.merge(s, m);
  IF s.held AND known.kind = 'message' THEN
    UPDATE aiecs.records r SET held = true, position = m.stamp, role = m.role, content = m.content,
           metadata = m.metadata, message_at = nullif(m.occurred_at, r.occurred_at)
     WHERE r.key = s.key AND r.op_id = known.op_id;
  ELSIF s.held THEN
    UPDATE aiecs.records r SET held = true WHERE r.key = s.key AND r.op_id = known.op_id AND NOT r.held;
  END IF;
  RETURN s;
END $$;

-- What the accepting store decides: code, answer and effect; effect NULL when nothing happens and so nothing is replayed.
CREATE FUNCTION aiecs.decide(s aiecs.state, m aiecs.mutation, dead jsonb) RETURNS aiecs.result LANGUAGE plpgsql AS $$
DECLARE
  d aiecs.result;
  v_version bigint;
  v_ended boolean;
  v_inc bytea := CASE WHEN dead ? 'session' THEN NULL ELSE s.current_inc END;
  v_thread_dead bigint := coalesce((dead->>'thread')::bigint, s.thread_dead);
BEGIN
  d.code := 'applied';
  d.answer := 'true';
  d.effect := coalesce(m.body, '{}');
  IF m.kind = 'update' THEN
    SELECT x.touched, x.ended IS NOT NULL INTO v_version, v_ended
      FROM aiecs.sessions x WHERE x.key = s.key AND x.inc = v_inc;
  ELSIF m.expected IS NULL THEN
    NULL;  -- only an update has to look at what it meets
  ELSIF m.kind = 'context' THEN
    SELECT max(c.stamp) INTO v_version FROM aiecs.contexts c WHERE c.key = s.key AND NOT dead ? 'session';
  ELSIF m.kind = 'checkpoint' THEN
    SELECT c.stamp INTO v_version FROM aiecs.checkpoints c WHERE c.key = s.key AND c.ns = m.body->>'ns'
       AND c.id = m.body->>'id' AND c.data IS NOT NULL AND c.stamp > v_thread_dead;
  END IF;
  IF m.kind IN ('update', 'context', 'checkpoint') AND m.expected <> coalesce(v_version, 0) THEN
    d.code := 'version';
    d.detail := coalesce(v_version, 0);
    RETURN d;
  END IF;
  CASE m.kind
    WHEN 'create', 'message', 'writes', 'context', 'checkpoint' THEN
      NULL;
    WHEN 'update', 'end' THEN
      IF v_inc IS NULL OR (v_ended AND m.body->'fields' ? 'status') THEN
        d.answer := 'false';
        d.effect := NULL;
      ELSE
        d.effect := m.body || jsonb_build_object('inc', encode(v_inc, 'hex'));
      END IF;
    WHEN 'prune' THEN
      SELECT jsonb_agg(jsonb_build_array(c.id, c.id_full) ORDER BY c.stamp DESC, c.op_id DESC), to_jsonb(count(*))
        INTO d.effect, d.answer
        FROM (SELECT * FROM aiecs.checkpoints c
               WHERE c.key = s.key AND c.ns = m.body->>'ns' AND c.data IS NOT NULL AND NOT dead ? 'thread'
               ORDER BY c.stamp DESC, c.op_id DESC OFFSET (m.body->>'keep')::bigint) c;
      d.effect := m.body - 'keep' || jsonb_build_object('ids', d.effect);
      IF d.answer = '0' THEN
        d.effect := NULL;
      END IF;
    WHEN 'delete' THEN
      IF ((m.body->>'before')::bigint > 0 AND s.clock >= (m.body->>'before')::bigint
            AND NOT dead ? (m.body->>'scope'))  -- it came alive since clean-up looked
         OR NOT (dead ? (m.body->>'scope')
                 OR (s.has_session AND m.body->>'scope' <> 'thread')
                 OR (s.has_thread AND m.body->>'scope' <> 'session')) THEN
        d.answer := 'false';
        d.effect := NULL;
      ELSE
        d.effect := m.body - 'before';
      END IF;
  END CASE;
  RETURN d;
END $$;

-- Write the operation down. For kinds with a row of their own the effect only says where that row is.
CREATE FUNCTION aiecs.write_record(s aiecs.state, m aiecs.mutation, p_answer jsonb, p_effect jsonb, p_now bigint)
RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO aiecs.records (key, op_id, kind, stamp, rank, home, marked, fingerprint, occurred_at, seen_at, expires_at,
    format, answer, effect, held, position, role, content, metadata)
  VALUES (m.key, m.op_id, m.kind, m.stamp, m.rank, m.home, m.mark AND p_effect IS NOT NULL, m.fingerprint,
    m.occurred_at, p_now, m.expires_at, m.format, p_answer, p_effect, s.held,
    CASE WHEN m.kind = 'message' AND s.held THEN m.stamp END,
    CASE WHEN m.kind = 'message' AND s.held THEN m.role END,
    CASE WHEN m.kind = 'message' AND s.held THEN m.content END,
    CASE WHEN m.kind = 'create' OR (m.kind = 'message' AND s.held) THEN m.metadata END);
END $$;

CREATE FUNCTION aiecs.apply(
  p_key text[], p_id text[], p_op_id bytea[], p_kind text[], p_fingerprint bytea[], p_occurred_at bigint[],
  p_stamp bigint[], p_replay boolean[], p_rank bigint[], p_epoch bigint[], p_home text[], p_mark boolean[],
  p_expected bigint[], p_expires_at bigint[], p_answer jsonb[], p_format smallint[], p_whole boolean[], p_body jsonb[],
  p_role text[], p_content text[], p_data bytea[], p_metadata bytea[], p_must_act boolean[],
  p_fenced boolean, p_now bigint, p_max_age bigint, p_retention bigint, p_versions integer
) RETURNS SETOF aiecs.result LANGUAGE plpgsql AS $$
DECLARE
  m aiecs.mutation;
  s aiecs.state;
  r aiecs.result;
  known aiecs.records;
  v_epoch bigint;
  v_leader text;
  v_now bigint;
  v_dead jsonb;
  v_scope text;
  v_theirs boolean;
BEGIN
  IF current_setting('transaction_isolation') <> 'read committed' THEN
    RAISE EXCEPTION 'writes need the isolation level read committed, not %', current_setting('transaction_isolation')
      USING ERRCODE = 'feature_not_supported', HINT = 'set default_transaction_isolation for this role or database';
  END IF;
  IF p_fenced THEN
    -- First the lock, then, in a statement with a later snapshot, the route: a plain read alone is no fence.
    PERFORM pg_advisory_xact_lock_shared(1095321923, hashtext('aiecs.fence'));
    SELECT x.epoch, x.leader INTO v_epoch, v_leader FROM aiecs.store x;
  END IF;
  v_now := coalesce(p_now, aiecs.now_us());
  FOR m IN
    SELECT u.n, u.key, u.id, u.op_id, u.kind, u.fingerprint, u.occurred_at, u.stamp, u.replay, u.rank, u.epoch, u.home,
           u.mark, u.expected, u.expires_at, u.answer, u.format, u.whole, u.body, u.role, u.content, u.data, u.metadata,
           u.must_act
      FROM unnest(p_key, p_id, p_op_id, p_kind, p_fingerprint, p_occurred_at, p_stamp, p_replay, p_rank, p_epoch, p_home,
                  p_mark, p_expected, p_expires_at, p_answer, p_format, p_whole, p_body, p_role, p_content, p_data,
                  p_metadata, p_must_act) WITH ORDINALITY
        AS u (key, id, op_id, kind, fingerprint, occurred_at, stamp, replay, rank, epoch, home, mark, expected, expires_at,
              answer, format, whole, body, role, content, data, metadata, must_act, n)
     ORDER BY u.key COLLATE "C", u.n  -- locks are always taken in this order
  LOOP
    r := NULL;
    r.n := m.n;
    IF m.epoch <> 0 AND NOT ((m.replay AND m.epoch >= v_epoch)
                             OR (NOT m.replay AND m.epoch = v_epoch AND m.home = v_leader)) THEN
      r.code := 'route';
      r.stamp := v_epoch;
      r.detail := v_leader;
      RETURN NEXT r;
      CONTINUE;
    ELSIF m.format > 1 THEN
      r.code := 'format';
      RETURN NEXT r;
      CONTINUE;
    END IF;

    IF s.key IS DISTINCT FROM m.key THEN
      IF s.key IS NOT NULL THEN
        PERFORM aiecs.save_key(s);
      END IF;
      s := aiecs.lock_key(m.key, m.id, v_now - p_retention, p_versions);
    END IF;

    SELECT * INTO known FROM aiecs.records x WHERE x.key = m.key AND x.op_id = m.op_id FOR UPDATE;
    IF FOUND THEN  -- it is here already: of two stamps for one op_id the higher rank counts, then the higher stamp
      IF NOT m.replay THEN
        IF known.fingerprint <> m.fingerprint THEN
          r.code := 'payload';
          RETURN NEXT r;
          CONTINUE;
        END IF;
        IF m.rank > known.rank THEN
          UPDATE aiecs.records x SET rank = m.rank, marked = x.marked OR (m.mark AND x.effect IS NOT NULL)
           WHERE x.key = m.key AND x.op_id = m.op_id RETURNING * INTO known;
        END IF;
      ELSE
        v_theirs := (m.rank, m.stamp) > (known.rank, known.stamp);
        IF v_theirs THEN
          s := aiecs.redo(s, known, m);
        END IF;
        -- The peer evidently has it. Only if it stands there under a losing stamp must it still hear of ours, also if
        -- ours did nothing: then the peer has something to withdraw.
        UPDATE aiecs.records x SET
          stamp = CASE WHEN v_theirs THEN m.stamp ELSE x.stamp END,
          rank = CASE WHEN v_theirs THEN m.rank ELSE x.rank END,
          answer = CASE WHEN v_theirs THEN m.answer ELSE x.answer END,
          marked = (m.rank, m.stamp) < (known.rank, known.stamp),
          effect = CASE WHEN (m.rank, m.stamp) < (known.rank, known.stamp) THEN coalesce(x.effect, '{}') ELSE x.effect END
         WHERE x.key = m.key AND x.op_id = m.op_id RETURNING * INTO known;
      END IF;
      r := aiecs.effect_of(known);
      r.n := m.n;
      r.code := 'applied';
      r.stamp := known.stamp;
      r.rank := known.rank;
      r.answer := known.answer;
      r.occurred_at := known.occurred_at;
      r.expires_at := known.expires_at;
      r.duplicate := true;
      RETURN NEXT r;
      CONTINUE;
    END IF;

    IF NOT m.replay AND m.stamp < v_now - p_max_age THEN
      r.code := 'old';
      r.detail := v_now - m.stamp;
      RETURN NEXT r;
      CONTINUE;
    ELSIF m.kind NOT IN ('create', 'update', 'end', 'message', 'context', 'checkpoint', 'writes', 'prune', 'delete') THEN
      r.code := 'kind';
      RETURN NEXT r;
      CONTINUE;
    ELSIF m.replay THEN  -- what the peer accepted: its stamp, its effect, its answer, verbatim
      s.clock := greatest(s.clock, m.stamp);
      s.held := false;
      FOR v_scope IN SELECT jsonb_object_keys(m.body->'dead') LOOP
        s := aiecs.bury(s, v_scope, (m.body->'dead'->>v_scope)::bigint);
      END LOOP;
      IF m.whole THEN
        s := aiecs.merge(s, m);
      END IF;
      r.answer := m.answer;
      r.effect := coalesce(m.body, '{}');
    ELSE
      v_dead := '{}';
      IF 0 < s.session_expires AND s.session_expires <= v_now AND s.session_dead < s.session_expires THEN
        v_dead := jsonb_build_object('session', s.session_expires);
      END IF;
      IF 0 < s.thread_expires AND s.thread_expires <= v_now AND s.thread_dead < s.thread_expires THEN
        v_dead := v_dead || jsonb_build_object('thread', s.thread_expires);
      END IF;
      IF m.kind = 'message' THEN
        r.answer := 'true';
        r.effect := '{}';
      ELSE
        r := aiecs.decide(s, m, v_dead);
        r.n := m.n;
        IF r.code <> 'applied' THEN
          RETURN NEXT r;
          CONTINUE;
        ELSIF r.effect IS NULL AND m.must_act THEN
          r.code := 'nothing';
          RETURN NEXT r;
          CONTINUE;
        END IF;
      END IF;
      -- Above all that is void: a write minted before an expiry and arriving after it is alive.
      m.stamp := greatest(least(m.stamp, v_now + 1000000), 1 + greatest(s.clock, s.session_dead, s.thread_dead,
                          (v_dead->>'session')::bigint, (v_dead->>'thread')::bigint));
      s.held := false;
      IF r.effect IS NOT NULL THEN  -- a write without effect moves no clock: the peer never hears of it
        s.clock := m.stamp;
        IF v_dead <> '{}' THEN
          r.effect := r.effect || jsonb_build_object('dead', v_dead);
          FOR v_scope IN SELECT jsonb_object_keys(v_dead) LOOP
            s := aiecs.bury(s, v_scope, (v_dead->>v_scope)::bigint);
          END LOOP;
        END IF;
        m.body := r.effect;
        s := aiecs.merge(s, m);
      END IF;
    END IF;
    IF r.effect IS NOT NULL THEN
      s := aiecs.renew_expiry(s, m.kind, m.expires_at);
      s.changed := true;
    END IF;
    PERFORM aiecs.write_record(s, m, r.answer, r.effect, v_now);
    r.code := 'applied';
    r.stamp := m.stamp;
    r.rank := m.rank;
    r.effect := r.effect - 'fields' - 'shown';  -- the caller has them
    r.occurred_at := m.occurred_at;
    r.expires_at := m.expires_at;
    r.duplicate := false;
    RETURN NEXT r;
  END LOOP;
  IF s.key IS NOT NULL THEN
    PERFORM aiecs.save_key(s);
  END IF;
END $$;
