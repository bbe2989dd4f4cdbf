-- Many messages at once, as group commit brings them: set by set instead of one by one. Only what is plain: no repeat, no
-- expiry that has passed, one fence for all. Otherwise NULL, nothing has been changed, and the caller asks aiecs.apply.

-- The stamps given, in the order of the messages. Of the i-th message of a key: max(proposal, the one before + 1), which is
-- i + max(clock, the greatest proposal - i so far).
CREATE FUNCTION aiecs.append_many(
  p_key text[], p_id text[], p_op_id bytea[], p_fingerprint bytea[], p_occurred_at bigint[], p_stamp bigint[],
  p_rank bigint[], p_mark boolean[], p_expires_at bigint[], p_role text[], p_content text[], p_metadata bytea[],
  p_replay boolean, p_epoch bigint, p_home text, p_now bigint, p_max_age bigint
) RETURNS bigint[] LANGUAGE plpgsql AS $$
DECLARE
  v_now bigint := coalesce(p_now, aiecs.now_us());
  v_keys text[] := ARRAY(SELECT DISTINCT u.key COLLATE "C" FROM unnest(p_key) AS u (key));
  v_new boolean;
  v_stamps bigint[];
BEGIN
  IF current_setting('transaction_isolation') <> 'read committed' THEN
    RETURN NULL;  -- aiecs.apply says why not
  END IF;
  IF p_epoch <> 0 THEN
    PERFORM pg_advisory_xact_lock_shared(1095321923, hashtext('aiecs.fence'));
    IF NOT EXISTS (SELECT FROM aiecs.store x WHERE
         CASE WHEN p_replay THEN p_epoch >= x.epoch ELSE p_epoch = x.epoch AND p_home = x.leader END) THEN
      RETURN NULL;
    END IF;
  END IF;

  -- Locks are taken in the order of keys, as everywhere; a new key gets its row first.
  v_new := (SELECT count(*) FROM aiecs.keys k WHERE k.key = ANY (v_keys)) < cardinality(v_keys);
  IF v_new THEN
    INSERT INTO aiecs.keys AS k (key, id)
    SELECT DISTINCT ON (u.key COLLATE "C") u.key, u.id FROM unnest(p_key, p_id) AS u (key, id) ORDER BY u.key COLLATE "C"
    ON CONFLICT (key) DO UPDATE SET clock = k.clock;
  ELSE
    PERFORM FROM aiecs.keys k WHERE k.key = ANY (v_keys) ORDER BY k.key FOR UPDATE;
  END IF;

  IF EXISTS (
       SELECT FROM unnest(p_key, p_op_id) AS u (key, op_id) JOIN aiecs.records r ON r.key = u.key AND r.op_id = u.op_id)
     OR p_replay AND EXISTS (
       SELECT FROM unnest(p_key, p_stamp) AS u (key, stamp) JOIN aiecs.keys k ON k.key = u.key
        WHERE u.stamp <= k.session_dead)
     OR NOT p_replay AND (
       v_now - p_max_age > (SELECT min(x) FROM unnest(p_stamp) AS x)
       OR EXISTS (
         SELECT FROM aiecs.keys k WHERE k.key = ANY (v_keys)
            AND (k.session_dead > k.clock OR 0 < k.session_expires AND k.session_expires <= v_now
                 OR 0 < k.thread_expires AND k.thread_expires <= v_now))) THEN
    IF v_new THEN
      RAISE EXCEPTION 'not plain' USING ERRCODE = 'unique_violation';  -- takes the new rows away again
    END IF;
    RETURN NULL;
  END IF;

  WITH u AS (
    SELECT x.*, row_number() OVER (PARTITION BY x.key ORDER BY x.n) AS i
      FROM unnest(p_key, p_op_id, p_fingerprint, p_occurred_at, p_stamp, p_rank, p_mark, p_expires_at, p_role, p_content,
                  p_metadata) WITH ORDINALITY
        AS x (key, op_id, fingerprint, occurred_at, stamp, rank, mark, expires_at, role, content, metadata, n)
  ), t AS MATERIALIZED (
    SELECT u.*, CASE WHEN p_replay THEN u.stamp ELSE u.i + greatest(k.clock,
             max(least(u.stamp, v_now + 1000000) - u.i) OVER (PARTITION BY u.key ORDER BY u.n)) END AS given
      FROM u JOIN aiecs.keys k ON k.key = u.key
  ), moved AS (
    UPDATE aiecs.keys k SET clock = greatest(k.clock, l.given), session_expires = greatest(k.session_expires, l.expires_at),
           has_session = true
      FROM (SELECT t.key, max(t.given) AS given, max(t.expires_at) AS expires_at FROM t GROUP BY t.key) l
     WHERE k.key = l.key
  ), written AS (
    INSERT INTO aiecs.records (key, op_id, kind, stamp, rank, home, marked, fingerprint, occurred_at, seen_at, expires_at,
      format, answer, effect, held, position, role, content, metadata)
    SELECT t.key, t.op_id, 'message', t.given, t.rank, p_home, t.mark, t.fingerprint, t.occurred_at, v_now, t.expires_at,
      1, 'true', '{}', true, t.given, t.role, t.content, t.metadata
      FROM t
  )
  SELECT array_agg(t.given ORDER BY t.n) INTO v_stamps FROM t;
  RETURN v_stamps;
END $$;
