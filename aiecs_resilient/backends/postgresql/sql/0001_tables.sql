-- One row per operation, beside the rows that it made. Every index begins with the key, except those of background work.
--
-- Keys, namespaces and ids in index columns are written by codec.encode_key (short ids as they are, long ones hashed;
-- `*_full` then holds the whole id), other text by codec.escape_text, because PostgreSQL's text refuses NUL. Identities
-- (op_id, inc) are UTF-8 bytes, so that they compare as in every other store. Values of users are opaque bytes.
-- Times and stamps are microseconds since 1970, UTC.

CREATE TABLE aiecs.store (
  single boolean PRIMARY KEY DEFAULT true CHECK (single),
  epoch bigint NOT NULL DEFAULT 0,
  leader text NOT NULL DEFAULT '',
  incarnation text NOT NULL DEFAULT gen_random_uuid()::text
);
INSERT INTO aiecs.store DEFAULT VALUES;

-- What health writes to, to know that writing works.
CREATE TABLE aiecs.pulse (single boolean PRIMARY KEY DEFAULT true CHECK (single), beat bigint NOT NULL);
INSERT INTO aiecs.pulse (beat) VALUES (0);

-- The clock of a key: locking its row is what serialises the writes of one session or thread. The clock itself is in no
-- index, only a coarse copy (268 s), so that advancing it stays within the page (HOT). has_session, has_thread: something
-- that a delete would take away; has_root: a living checkpoint in the namespace "".
CREATE TABLE aiecs.keys (
  clock bigint NOT NULL DEFAULT 0,
  session_dead bigint NOT NULL DEFAULT 0,
  thread_dead bigint NOT NULL DEFAULT 0,
  session_expires bigint NOT NULL DEFAULT 0,
  thread_expires bigint NOT NULL DEFAULT 0,
  quiet_since bigint GENERATED ALWAYS AS (clock >> 28) STORED,
  session_due bigint GENERATED ALWAYS AS (CASE WHEN session_expires > 0 THEN session_expires >> 28 END) STORED,
  thread_due bigint GENERATED ALWAYS AS (CASE WHEN thread_expires > 0 THEN thread_expires >> 28 END) STORED,
  has_session boolean NOT NULL DEFAULT false,
  has_thread boolean NOT NULL DEFAULT false,
  has_root boolean NOT NULL DEFAULT false,
  key text COLLATE "C" PRIMARY KEY,
  id text NOT NULL,
  current_inc bytea
) WITH (fillfactor = 75, autovacuum_vacuum_scale_factor = 0.05);
CREATE INDEX keys_quiet ON aiecs.keys (quiet_since) WHERE has_session;
CREATE INDEX keys_session_due ON aiecs.keys (session_due) WHERE has_session AND session_due IS NOT NULL;
CREATE INDEX keys_thread_due ON aiecs.keys (thread_due) WHERE has_thread AND thread_due IS NOT NULL;
CREATE INDEX keys_root ON aiecs.keys (key) WHERE has_root;

-- Operations. A message is its own record: position, role, content and metadata are set while it lives.
-- held: a row needs this identity (a living message, a checkpoint); marked: the peer lacks it; seen_at: when it arrived here.
CREATE TABLE aiecs.records (
  stamp bigint NOT NULL,
  rank bigint NOT NULL,
  occurred_at bigint NOT NULL,
  seen_at bigint NOT NULL,
  expires_at bigint NOT NULL,
  position bigint,
  message_at bigint,
  format smallint NOT NULL,
  marked boolean NOT NULL,
  held boolean NOT NULL,
  key text COLLATE "C" NOT NULL,
  op_id bytea NOT NULL,
  kind text NOT NULL,
  home text NOT NULL,
  fingerprint bytea NOT NULL,
  answer jsonb NOT NULL,
  effect jsonb,
  role text,
  content text,
  metadata bytea,
  PRIMARY KEY (key, op_id)
);
CREATE INDEX records_history ON aiecs.records (key, position, op_id) WHERE position IS NOT NULL;
CREATE INDEX records_marked ON aiecs.records (stamp, key, op_id) WHERE marked;
CREATE INDEX records_stamp ON aiecs.records (stamp);
CREATE INDEX records_prunable ON aiecs.records (seen_at) WHERE NOT held AND NOT marked;

-- One row per incarnation. fields: {name: [stamp, hex of op_id, base64 of the value]}; set_status and set_owner are two
-- of them in readable form, kept for filters. Counters change nothing that an index holds.
CREATE TABLE aiecs.sessions (
  created bigint,
  created_at bigint NOT NULL DEFAULT 0,
  requests bigint NOT NULL DEFAULT 0,
  time_us bigint NOT NULL DEFAULT 0,
  errors bigint NOT NULL DEFAULT 0,
  touched bigint NOT NULL DEFAULT 0,
  touched_at bigint NOT NULL DEFAULT 0,
  ended bigint,
  superseded boolean NOT NULL DEFAULT false,
  key text COLLATE "C" NOT NULL,
  inc bytea NOT NULL,
  ended_by bytea,
  ended_status text,
  set_status text,
  set_owner text,
  user_id text NOT NULL DEFAULT '',
  metadata bytea NOT NULL DEFAULT '\x80',
  fields jsonb NOT NULL DEFAULT '{}',
  PRIMARY KEY (key, inc)
) WITH (fillfactor = 75, autovacuum_vacuum_scale_factor = 0.05);
CREATE INDEX sessions_status ON aiecs.sessions
  (hashtextextended(coalesce(ended_status, set_status, 'active'), 0), key);
CREATE INDEX sessions_owner ON aiecs.sessions (hashtextextended(coalesce(set_owner, user_id), 0), key);
CREATE INDEX sessions_superseded ON aiecs.sessions (key) WHERE superseded;

CREATE TABLE aiecs.contexts (
  stamp bigint NOT NULL,
  occurred_at bigint NOT NULL,
  key text COLLATE "C" NOT NULL,
  op_id bytea NOT NULL,
  value bytea NOT NULL,
  PRIMARY KEY (key, op_id)
);

-- data NULL: pruned at that stamp (a tombstone).
CREATE TABLE aiecs.checkpoints (
  stamp bigint NOT NULL,
  occurred_at bigint NOT NULL,
  key text COLLATE "C" NOT NULL,
  ns text COLLATE "C" NOT NULL,
  id text COLLATE "C" NOT NULL,
  op_id bytea NOT NULL,
  id_full text,
  parent text,
  metadata bytea,
  data bytea,
  PRIMARY KEY (key, ns, id)
);
CREATE INDEX checkpoints_latest ON aiecs.checkpoints (key, ns, stamp, op_id) WHERE data IS NOT NULL;

CREATE TABLE aiecs.writes (
  stamp bigint NOT NULL,
  occurred_at bigint NOT NULL,
  key text COLLATE "C" NOT NULL,
  ns text COLLATE "C" NOT NULL,
  id text COLLATE "C" NOT NULL,
  task text COLLATE "C" NOT NULL,
  op_id bytea NOT NULL,
  path text NOT NULL,
  value bytea NOT NULL,
  PRIMARY KEY (key, ns, id, task)
);
