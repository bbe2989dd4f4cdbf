-- Apply mutations of one id, each at most once and atomically with its record: _engine.py's apply_one.
-- ARGV: id, name, now ('' for the server's clock), max age, context versions, format, then nine per mutation:
-- head, op_id, home, fingerprint, answer, a, b, c, body (see record.lua and _redis_rows.py).

local NOW, MAX_AGE, FORMAT = clock_us(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[6])
local LEAD = 1000000  -- how far a proposed stamp may run ahead of the store's clock
local REPLAY, MARK, HAS, EXPECTED = 1, 2, 4, 8

local routed = redis.call('GET', K.route)
local EPOCH, LEADER = 0, ''
if routed then
  local epoch, leader = string.match(routed, '^(%d+) (.*)$')
  EPOCH, LEADER = tonumber(epoch), leader
end

local function read_mutation(from)
  local m, flags, dead_session, dead_thread = {}, 0, 0, 0
  m.kind, flags, m.format, m.rank, m.epoch, m.stamp, m.occurred_at, m.expires_at, m.expected, dead_session,
    dead_thread = struct.unpack('>BBHdddddddd', ARGV[from])
  m.replay, m.mark = bit.band(flags, REPLAY) > 0, bit.band(flags, MARK) > 0
  m.op, m.home, m.fingerprint, m.answer = ARGV[from + 1], ARGV[from + 2], ARGV[from + 3], ARGV[from + 4]
  m.effect = { has = bit.band(flags, HAS) > 0, a = ARGV[from + 5], b = ARGV[from + 6], c = ARGV[from + 7],
    body = ARGV[from + 8], dead_session = dead_session, dead_thread = dead_thread }
  if bit.band(flags, EXPECTED) == 0 then
    m.expected = nil
  end
  m.place = 0
  return m
end

local function refuse(...)
  return { 0, ... }
end

-- ---------------------------------------------------------------- what the accepting store decides

local function version_conflict(m, version)
  if m.expected and m.expected ~= version then
    return refuse('version', int(version))
  end
end

local function copy(e, a, body)
  return { has = true, a = a, b = e.b, c = e.c, body = body, dead_session = 0, dead_thread = 0 }
end

local DECIDE = {}  -- each returns answer and effect (nil: nothing happens), or nil, nil and a refusal

local function yes(m)
  return TRUE, m.effect
end

DECIDE[KIND.create], DECIDE[KIND.message], DECIDE[KIND.writes] = yes, yes, yes

local function current_session(dead_session)
  return dead_session == 0 and row.current ~= '' and load_session(row.current) or nil
end

DECIDE[KIND.update] = function(m, dead_session)
  local session = current_session(dead_session)
  local wrong = version_conflict(m, session and num(get(session, 's:touched')) or 0)
  if wrong then
    return nil, nil, wrong
  end
  if not session then
    return FALSE
  end
  if row.ended then
    local parts = unframe(m.effect.body)
    for i = 4, #parts, 2 do
      if parts[i] == 'status' then
        return FALSE
      end
    end
  end
  return TRUE, copy(m.effect, session.inc, m.effect.body)
end

DECIDE[KIND.ending] = function(m, dead_session)
  local session = current_session(dead_session)
  if not session then
    return FALSE
  end
  return TRUE, copy(m.effect, session.inc, m.effect.body)
end

DECIDE[KIND.context] = function(m, dead_session)
  local wrong = m.expected and version_conflict(m, dead_session > 0 and 0 or newest_context())
  return TRUE, m.effect, wrong
end

DECIDE[KIND.checkpoint] = function(m, _, dead_thread)
  if not m.expected then
    return TRUE, m.effect
  end
  local held = load_place(checkpoint_place(m.effect.a, m.effect.b))
  local dead = dead_thread > 0 and dead_thread or row.thread_dead
  return TRUE, m.effect, version_conflict(m, held and held.live and held.stamp > dead and held.stamp or 0)
end

DECIDE[KIND.prune] = function(m, _, dead_thread)
  local ids = dead_thread > 0 and {} or checkpoint_ids(m.effect.a, m.effect.body)
  return cmsgpack.pack(#ids), #ids > 0 and copy(m.effect, m.effect.a, frame(ids)) or nil
end

DECIDE[KIND.delete] = function(m, dead_session, dead_thread)
  local scope, before = m.effect.a, tonumber(m.effect.body)
  local dead = scope == 'session' and dead_session > 0 or scope == 'thread' and dead_thread > 0
  if before > 0 and row.clock >= before and not dead then
    return FALSE  -- it came alive since clean-up looked
  end
  local held = scope ~= 'thread' and row.class ~= '' or scope ~= 'session' and row.thread ~= ''
  if dead or held then
    return TRUE, copy(m.effect, scope, '')
  end
  return FALSE
end

-- ---------------------------------------------------------------- the three ways in

local function record(m, answer, effect)
  save_record(m.op, {
    kind = m.kind, marked = m.mark and effect ~= nil, format = m.format, rank = m.rank, stamp = m.stamp,
    occurred_at = m.occurred_at, expires_at = m.expires_at, place = m.place, home = m.home, answer = answer,
    fingerprint = m.fingerprint, effect = effect,
  }, false)
end

local function accept(m)
  if not DECIDE[m.kind] then
    return refuse('kind')
  end
  local stamp = math.max(math.min(m.stamp, NOW + LEAD), row.clock + 1)
  local dead_session, dead_thread = 0, 0
  if 0 < row.session_expires and row.session_expires <= NOW and row.session_dead < row.session_expires then
    dead_session = row.session_expires
  end
  if 0 < row.thread_expires and row.thread_expires <= NOW and row.thread_dead < row.thread_expires then
    dead_thread = row.thread_expires
  end
  local answer, effect, refusal = DECIDE[m.kind](m, dead_session, dead_thread)
  if refusal then
    return refusal
  end
  m.stamp = stamp
  if effect then  -- a write without effect moves no clock: the peer never hears of it
    row.clock = stamp
    effect.dead_session, effect.dead_thread = dead_session, dead_thread
    bury_dead(effect)
    MERGE[m.kind](m, effect)
    renew_expiry(m)
    save_row()
  end
  record(m, answer, effect)
  if not effect then
    return { 1, stamp, answer, -1 }
  end
  local ids = m.kind == KIND.prune and effect.body or ''
  return { 1, stamp, answer, 1, effect.a, ids, dead_session, dead_thread }
end

local function follow(m)
  if not MERGE[m.kind] then
    return refuse('kind')
  end
  row.clock = math.max(row.clock, m.stamp)
  bury_dead(m.effect)
  if m.effect.has then
    MERGE[m.kind](m, m.effect)
  end
  renew_expiry(m)
  save_row()
  record(m, m.answer, m.effect)
  return { 1 }
end

local function again(known, m)
  local was_marked, raw = known.marked, nil
  if not m.replay then
    if known.fingerprint ~= m.fingerprint then
      return refuse('reused')
    end
    if m.rank > known.rank then
      known.rank = m.rank
      known.marked = known.marked or (m.mark and known.effect ~= nil)
      raw = save_record(m.op, known, was_marked)
    end
  else
    if m.rank > known.rank or (m.rank == known.rank and m.stamp > known.stamp) then
      redo(known, m)
      save_row()
      known.stamp, known.rank, known.answer = m.stamp, m.rank, m.answer
      known.marked = false
    else
      -- The peer evidently has it. Only if it stands there under a losing stamp must it still hear of ours,
      -- also if ours did nothing: then the peer has something to withdraw.
      known.marked = m.rank ~= known.rank or m.stamp ~= known.stamp
      if known.marked and not known.effect then
        known.effect = { has = false, a = '', b = '', c = '', body = '', dead_session = 0, dead_thread = 0 }
      end
    end
    raw = save_record(m.op, known, was_marked)
  end
  return { 2, raw or pack_record(known), value_of(m.op, known) or false }
end

local function apply(m)
  local fenced = m.epoch ~= 0 and not (m.replay and m.epoch >= EPOCH)
    and not (not m.replay and m.epoch == EPOCH and m.home == LEADER)
  if fenced then
    return refuse('route', int(EPOCH), LEADER)
  end
  if m.format > FORMAT then
    return refuse('format')
  end
  local known = load_record(m.op)
  if known then
    return again(known, m)
  end
  if m.replay then
    return follow(m)
  end
  if m.stamp < NOW - MAX_AGE then
    return refuse('old', int(NOW - m.stamp))
  end
  return accept(m)
end

load_row()
local results = {}
for from = 7, #ARGV, 9 do
  results[#results + 1] = apply(read_mutation(from))
end
return results
