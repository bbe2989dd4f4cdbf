-- Merging one effect into the rows of its key, in any order of arrival: the mirror of backends/_engine.py.
-- All of this runs under the lock on the key's row, inside aiecs.apply.

-- One write on its way in. body: what is not text or bytes of its own. whole: it carries an effect, not only "dead".
CREATE TYPE aiecs.mutation AS (
  n bigint, key text, id text, op_id bytea, kind text, fingerprint bytea, occurred_at bigint, stamp bigint,
  replay boolean, rank bigint, epoch bigint, home text, mark boolean, expected bigint, expires_at bigint,
  answer jsonb, format smallint, whole boolean, body jsonb, role text, content text, data bytea, metadata bytea,
  must_act boolean
);

-- A key's row while a batch works on it. held: the last merge made a row that needs its record.
CREATE TYPE aiecs.state AS (
  key text, id text, clock bigint, session_dead bigint, thread_dead bigint, session_expires bigint,
  thread_expires bigint, current_inc bytea, has_session boolean, has_thread boolean, has_root boolean,
  fresh boolean, changed boolean, held boolean, horizon bigint, versions integer
);

CREATE FUNCTION aiecs.now_us() RETURNS bigint LANGUAGE sql VOLATILE AS
$$ SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint $$;

-- The same for reads: one time for the whole statement, so that an index can be searched by it.
CREATE FUNCTION aiecs.statement_us() RETURNS bigint LANGUAGE sql STABLE AS
$$ SELECT (extract(epoch FROM statement_timestamp()) * 1000000)::bigint $$;

-- The create with the highest (stamp, op_id) is the session.
CREATE FUNCTION aiecs.choose_current(s aiecs.state) RETURNS aiecs.state LANGUAGE plpgsql AS $$
DECLARE
  v_inc bytea;
BEGIN
  SELECT x.inc INTO v_inc FROM aiecs.sessions x
   WHERE x.key = s.key AND x.created > s.session_dead ORDER BY x.created DESC, x.inc DESC LIMIT 1;
  UPDATE aiecs.sessions x SET superseded = x.inc IS DISTINCT FROM v_inc
   WHERE x.key = s.key AND x.created IS NOT NULL AND x.superseded <> (x.inc IS DISTINCT FROM v_inc);
  s.current_inc := v_inc;
  RETURN s;
END $$;

-- Everything of the scope with a stamp up to this is void, also what arrives later.
CREATE FUNCTION aiecs.bury(s aiecs.state, p_scope text, p_upto bigint) RETURNS aiecs.state LANGUAGE plpgsql AS $$
DECLARE
  v_ops bytea[];
BEGIN
  IF p_scope = 'session' THEN
    s.session_dead := greatest(s.session_dead, p_upto);
    s.session_expires := CASE WHEN s.session_expires > p_upto THEN s.session_expires ELSE 0 END;
    DELETE FROM aiecs.sessions x WHERE x.key = s.key AND x.created <= p_upto;
    DELETE FROM aiecs.records r
     WHERE r.key = s.key AND r.position <= p_upto AND NOT r.marked AND r.seen_at < s.horizon;
    UPDATE aiecs.records r
       SET position = NULL, message_at = NULL, role = NULL, content = NULL, metadata = NULL, held = false
     WHERE r.key = s.key AND r.position <= p_upto;
    DELETE FROM aiecs.contexts c WHERE c.key = s.key AND c.stamp <= p_upto;
    s := aiecs.choose_current(s);
    s.has_session := s.current_inc IS NOT NULL
      OR (SELECT true FROM aiecs.records r WHERE r.key = s.key AND r.position IS NOT NULL
           ORDER BY r.position, r.op_id LIMIT 1) IS TRUE
      OR (SELECT true FROM aiecs.contexts c WHERE c.key = s.key ORDER BY c.op_id LIMIT 1) IS TRUE;
  ELSE
    s.thread_dead := greatest(s.thread_dead, p_upto);
    s.thread_expires := CASE WHEN s.thread_expires > p_upto THEN s.thread_expires ELSE 0 END;
    WITH gone AS (DELETE FROM aiecs.checkpoints c WHERE c.key = s.key AND c.stamp <= p_upto RETURNING c.op_id)
    SELECT array_agg(gone.op_id) INTO v_ops FROM gone;
    UPDATE aiecs.records r SET held = false
     WHERE r.key = s.key AND r.op_id = ANY (v_ops) AND r.kind = 'checkpoint' AND r.held;
    DELETE FROM aiecs.writes w WHERE w.key = s.key AND w.stamp <= p_upto;
    s := aiecs.count_thread(s);
  END IF;
  RETURN s;
END $$;

-- What is left of a thread. The orders are those of the indexes: without them a table that one thread fills is scanned.
CREATE FUNCTION aiecs.count_thread(s aiecs.state) RETURNS aiecs.state LANGUAGE plpgsql AS $$
BEGIN
  s.has_root := (SELECT true FROM aiecs.checkpoints c WHERE c.key = s.key AND c.ns = '' AND c.data IS NOT NULL
                  ORDER BY c.stamp, c.op_id LIMIT 1) IS TRUE;
  s.has_thread := s.has_root
    OR (SELECT true FROM aiecs.checkpoints c WHERE c.key = s.key AND c.data IS NOT NULL
         ORDER BY c.ns, c.stamp, c.op_id LIMIT 1) IS TRUE
    OR (SELECT true FROM aiecs.writes w WHERE w.key = s.key ORDER BY w.ns, w.id, w.task LIMIT 1) IS TRUE;
  RETURN s;
END $$;

CREATE FUNCTION aiecs.merge_session(s aiecs.state, m aiecs.mutation) RETURNS aiecs.state LANGUAGE plpgsql AS $$
DECLARE
  v_inc bytea := decode(m.body->>'inc', 'hex');
  v_by text := encode(m.op_id, 'hex');
  v_held jsonb;
  v_won jsonb;
BEGIN
  IF m.stamp <= s.session_dead THEN
    RETURN s;
  END IF;
  IF m.kind = 'create' THEN
    INSERT INTO aiecs.sessions AS x (key, inc, created, user_id, metadata, created_at, touched, touched_at)
    VALUES (m.key, m.op_id, m.stamp, m.body->>'user_id', m.metadata, m.occurred_at, m.stamp, m.occurred_at)
    ON CONFLICT (key, inc) DO UPDATE SET
      created = excluded.created, user_id = excluded.user_id, metadata = excluded.metadata,
      created_at = excluded.created_at, touched = greatest(x.touched, excluded.touched),
      touched_at = CASE WHEN (excluded.touched, excluded.touched_at) > (x.touched, x.touched_at)
        THEN excluded.touched_at ELSE x.touched_at END;
    s := aiecs.choose_current(s);
    s.has_session := true;
  ELSIF m.kind = 'update' THEN
    IF m.body ? 'fields' THEN
      SELECT x.fields INTO v_held FROM aiecs.sessions x WHERE x.key = m.key AND x.inc = v_inc;
      SELECT jsonb_object_agg(f.key, jsonb_build_array(m.stamp, v_by, f.value)) INTO v_won
        FROM jsonb_each(m.body->'fields') f
       WHERE v_held->f.key IS NULL
          OR (m.stamp, v_by COLLATE "C") > ((v_held->f.key->>0)::bigint, v_held->f.key->>1);
    END IF;
    INSERT INTO aiecs.sessions AS x
      (key, inc, requests, time_us, errors, touched, touched_at, fields, set_status, set_owner)
    VALUES (m.key, v_inc, (m.body->>'requests')::bigint, (m.body->>'time_us')::bigint,
            (m.body->>'errors')::bigint, m.stamp, m.occurred_at, coalesce(v_won, '{}'),
            CASE WHEN v_won ? 'status' THEN m.body->'shown'->>'status' END,
            CASE WHEN v_won ? 'user_id' THEN m.body->'shown'->>'user_id' END)
    ON CONFLICT (key, inc) DO UPDATE SET
      requests = x.requests + excluded.requests, time_us = x.time_us + excluded.time_us,
      errors = x.errors + excluded.errors, touched = greatest(x.touched, excluded.touched),
      touched_at = CASE WHEN (excluded.touched, excluded.touched_at) > (x.touched, x.touched_at)
        THEN excluded.touched_at ELSE x.touched_at END,
      fields = CASE WHEN v_won IS NULL THEN x.fields ELSE x.fields || v_won END,
      set_status = coalesce(excluded.set_status, x.set_status),
      set_owner = coalesce(excluded.set_owner, x.set_owner);
  ELSE
    INSERT INTO aiecs.sessions AS x (key, inc, ended, ended_by, ended_status, touched, touched_at)
    VALUES (m.key, v_inc, m.stamp, m.op_id, m.body->>'status', m.stamp, m.occurred_at)
    ON CONFLICT (key, inc) DO UPDATE SET
      (ended, ended_by, ended_status) = (
        SELECT e.ended, e.ended_by, e.ended_status
          FROM (VALUES (x.ended, x.ended_by, x.ended_status),
                       (excluded.ended, excluded.ended_by, excluded.ended_status)) e (ended, ended_by, ended_status)
         WHERE e.ended IS NOT NULL ORDER BY e.ended DESC, e.ended_by DESC LIMIT 1),
      touched = greatest(x.touched, excluded.touched),
      touched_at = CASE WHEN (excluded.touched, excluded.touched_at) > (x.touched, x.touched_at)
        THEN excluded.touched_at ELSE x.touched_at END;
  END IF;
  RETURN s;
END $$;

CREATE FUNCTION aiecs.merge_checkpoint(s aiecs.state, m aiecs.mutation) RETURNS aiecs.state LANGUAGE plpgsql AS $$
DECLARE
  v_stamp bigint;
  v_op bytea;
BEGIN
  SELECT c.stamp, c.op_id INTO v_stamp, v_op FROM aiecs.checkpoints c
   WHERE c.key = m.key AND c.ns = m.body->>'ns' AND c.id = m.body->>'id';
  IF m.stamp <= s.thread_dead OR (m.stamp, m.op_id) <= (v_stamp, v_op) THEN
    RETURN s;
  END IF;
  INSERT INTO aiecs.checkpoints AS c (key, ns, id, id_full, stamp, op_id, occurred_at, parent, metadata, data)
  VALUES (m.key, m.body->>'ns', m.body->>'id', m.body->'full'->>'id', m.stamp, m.op_id, m.occurred_at,
          m.content, m.metadata, m.data)
  ON CONFLICT (key, ns, id) DO UPDATE SET
    stamp = excluded.stamp, op_id = excluded.op_id, occurred_at = excluded.occurred_at,
    parent = excluded.parent, metadata = excluded.metadata, data = excluded.data;
  UPDATE aiecs.records r SET held = false
   WHERE r.key = m.key AND r.op_id = v_op AND r.kind = 'checkpoint' AND r.op_id <> m.op_id;
  s.held := true;
  s.has_thread := true;
  s.has_root := s.has_root OR m.body->>'ns' = '';
  RETURN s;
END $$;

CREATE FUNCTION aiecs.merge_writes(s aiecs.state, m aiecs.mutation) RETURNS aiecs.state LANGUAGE plpgsql AS $$
BEGIN
  IF m.stamp <= s.thread_dead OR EXISTS (
      SELECT FROM aiecs.checkpoints c WHERE c.key = m.key AND c.ns = m.body->>'ns' AND c.id = m.body->>'id'
         AND c.data IS NULL AND c.stamp > m.stamp) THEN
    RETURN s;
  END IF;
  INSERT INTO aiecs.writes AS w (key, ns, id, task, stamp, op_id, occurred_at, path, value)
  VALUES (m.key, m.body->>'ns', m.body->>'id', m.body->>'task', m.stamp, m.op_id, m.occurred_at, m.content, m.data)
  ON CONFLICT (key, ns, id, task) DO UPDATE SET
    stamp = excluded.stamp, op_id = excluded.op_id, occurred_at = excluded.occurred_at,
    path = excluded.path, value = excluded.value
    WHERE (excluded.stamp, excluded.op_id) > (w.stamp, w.op_id);
  s.has_thread := true;
  RETURN s;
END $$;

CREATE FUNCTION aiecs.merge_prune(s aiecs.state, m aiecs.mutation) RETURNS aiecs.state LANGUAGE plpgsql AS $$
DECLARE
  v_id text;
  v_full text;
  v_stamp bigint;
  v_op bytea;
BEGIN
  FOR v_id, v_full IN SELECT e->>0, e->>1 FROM jsonb_array_elements(m.body->'ids') e LOOP
    SELECT c.stamp, c.op_id INTO v_stamp, v_op FROM aiecs.checkpoints c
     WHERE c.key = m.key AND c.ns = m.body->>'ns' AND c.id = v_id;
    IF NOT FOUND OR (m.stamp, m.op_id) > (v_stamp, v_op) THEN
      INSERT INTO aiecs.checkpoints AS c (key, ns, id, id_full, stamp, op_id, occurred_at)
      VALUES (m.key, m.body->>'ns', v_id, v_full, m.stamp, m.op_id, m.occurred_at)
      ON CONFLICT (key, ns, id) DO UPDATE SET
        stamp = excluded.stamp, op_id = excluded.op_id, occurred_at = excluded.occurred_at,
        parent = NULL, metadata = NULL, data = NULL;
      UPDATE aiecs.records r SET held = false
       WHERE r.key = m.key AND r.op_id = v_op AND r.kind = 'checkpoint' AND r.held;
    END IF;
    DELETE FROM aiecs.writes w
     WHERE w.key = m.key AND w.ns = m.body->>'ns' AND w.id = v_id AND w.stamp <= m.stamp;
  END LOOP;
  RETURN aiecs.count_thread(s);
END $$;

CREATE FUNCTION aiecs.merge_context(s aiecs.state, m aiecs.mutation) RETURNS aiecs.state LANGUAGE plpgsql AS $$
BEGIN
  IF m.stamp <= s.session_dead THEN
    RETURN s;
  END IF;
  INSERT INTO aiecs.contexts (key, op_id, stamp, occurred_at, value)
  VALUES (m.key, m.op_id, m.stamp, m.occurred_at, m.data)
  ON CONFLICT (key, op_id) DO UPDATE SET
    stamp = excluded.stamp, occurred_at = excluded.occurred_at, value = excluded.value;
  DELETE FROM aiecs.contexts c WHERE c.key = m.key AND c.op_id IN (
    SELECT o.op_id FROM aiecs.contexts o WHERE o.key = m.key ORDER BY o.stamp DESC, o.op_id DESC OFFSET s.versions);
  s.has_session := true;
  RETURN s;
END $$;

-- One effect. A message's row is its record: the caller writes it if this says that it is held.
CREATE FUNCTION aiecs.merge(s aiecs.state, m aiecs.mutation) RETURNS aiecs.state LANGUAGE plpgsql AS $$
BEGIN
  s.held := false;
  CASE m.kind
    WHEN 'message' THEN
      IF m.stamp > s.session_dead THEN
        s.held := true;
        s.has_session := true;
      END IF;
    WHEN 'create', 'update', 'end' THEN
      s := aiecs.merge_session(s, m);
    WHEN 'checkpoint' THEN
      s := aiecs.merge_checkpoint(s, m);
    WHEN 'writes' THEN
      s := aiecs.merge_writes(s, m);
    WHEN 'context' THEN
      s := aiecs.merge_context(s, m);
    WHEN 'prune' THEN
      s := aiecs.merge_prune(s, m);
    WHEN 'delete' THEN
      IF m.body->>'scope' IN ('session', 'all') THEN
        s := aiecs.bury(s, 'session', m.stamp);
      END IF;
      IF m.body->>'scope' IN ('thread', 'all') THEN
        s := aiecs.bury(s, 'thread', m.stamp);
      END IF;
  END CASE;
  RETURN s;
END $$;

CREATE FUNCTION aiecs.renew_expiry(s aiecs.state, p_kind text, p_expires bigint) RETURNS aiecs.state
LANGUAGE plpgsql AS $$
BEGIN
  IF p_kind IN ('checkpoint', 'writes', 'prune') THEN
    s.thread_expires := greatest(s.thread_expires, p_expires);
  ELSIF p_kind <> 'delete' THEN
    s.session_expires := greatest(s.session_expires, p_expires);
  END IF;
  RETURN s;
END $$;
