-- Records of operations: packed here, unpacked here and by _rows.py.
-- An effect is { has, a, b, c, body, dead_session, dead_thread }, or nil where nothing is to be replayed:
--   has   anything besides `dead`: if not, a later write has replaced what it did
--   a b c create -, update and end: incarnation, checkpoint: ns id, writes: ns id task, prune: ns, delete: scope
--   body  the value, opaque; update: framed counts and fields; prune: framed ids; end: the status

local REFERS = { [KIND.message] = true, [KIND.context] = true, [KIND.checkpoint] = true, [KIND.writes] = true }
local MARKED, HAS_EFFECT, HAS_BODY = 1, 2, 4

function F.pack_record(r)
  local e = r.effect
  local flags = F.one(r.marked) * MARKED + F.one(e) * HAS_EFFECT + F.one(e and e.has) * HAS_BODY
  local dead = e and (e.dead_session > 0 or e.dead_thread > 0)
    and struct.pack('>dd', e.dead_session, e.dead_thread) or ''
  return struct.pack('>BBHddddd', r.kind, flags, r.format, r.rank, r.stamp, r.occurred_at, r.expires_at, r.place)
    .. F.frame({ r.home, r.answer, r.fingerprint, e and e.a or '', e and e.b or '', e and e.c or '', dead,
      e and not REFERS[r.kind] and e.body or '' })
end

function F.unpack_record(raw)
  local r, flags, at = {}, 0, 0
  r.kind, flags, r.format, r.rank, r.stamp, r.occurred_at, r.expires_at, r.place, at =
    struct.unpack('>BBHddddd', raw)
  local parts = F.unframe(string.sub(raw, at))
  r.home, r.answer, r.fingerprint = parts[1], parts[2], parts[3]
  r.marked = flags % 2 == 1
  if flags % 4 >= 2 then
    local dead_session, dead_thread = 0, 0
    if parts[7] ~= '' then
      dead_session, dead_thread = struct.unpack('>dd', parts[7])
    end
    r.effect = { has = flags >= HAS_BODY, a = parts[4], b = parts[5], c = parts[6], body = parts[8],
      dead_session = dead_session, dead_thread = dead_thread }
  end
  return r
end

function F.load_record(op)
  local raw = redis.call('HGET', K.records, op)
  return raw and F.unpack_record(raw) or nil
end

-- The entry of a record in the bucket's indexes.
function F.member_of(op)
  return F.ordered(ID) .. op
end

function F.save_record(op, r, was_marked)
  local raw = F.pack_record(r)
  redis.call('HSET', K.records, op, raw)
  redis.call('ZADD', K.log, F.int(r.stamp), F.member_of(op))
  if r.marked then
    redis.call('ZADD', K.marks, F.int(r.stamp), F.member_of(op))
  elseif was_marked then
    redis.call('ZREM', K.marks, F.member_of(op))
  end
  return raw
end

-- The value that a record refers to, if the row it made still stands; nil if not, or if the record holds it itself.
function F.value_of(op, r)
  if not r.effect then
    return nil
  end
  if r.kind == KIND.message then
    F.need_messages()
    local _, body = F.find_message(op, r.place)
    return body
  end
  if r.kind == KIND.context then
    local raw = redis.call('HGET', K.versions, op)
    return raw and string.sub(raw, 9) or nil
  end
  if not (r.effect.has and (r.kind == KIND.checkpoint or r.kind == KIND.writes)) then
    return nil
  end
  F.need_thread()
  local e = r.effect
  local place = r.kind == KIND.checkpoint and F.checkpoint_place(e.a, e.b) or F.writes_place(e.a, e.b, e.c)
  local held = F.load_place(place)
  if held and held.live and held.op == op then
    return redis.call('HGET', K.values, place.head .. place.last)
  end
end

-- What the peer has to replay for a record.
function F.effect_of(op, r)
  local e = r.effect
  if not e or not REFERS[r.kind] then
    return e
  end
  local body = F.value_of(op, r)
  return { has = body ~= nil, a = e.a, b = e.b, c = e.c, body = body or '',
    dead_session = e.dead_session, dead_thread = e.dead_thread }
end
