-- Text and numbers shared by all scripts. Values of users are opaque bytes here: never decoded, only moved.
-- Stamps are whole numbers below 2^53, so Lua's doubles hold them exactly; tostring() would round them.
-- Functions are fields of F, and F.need_<part>() defines those of a deferred part: see _scripts.py.

local F = {}

function F.nothing() end

function F.int(n)
  return string.format('%.0f', n)
end

function F.num(text)
  return text and tonumber(text) or 0
end

-- A list of byte strings as one, each preceded by its length.
function F.frame(parts)
  local out = {}
  for i, part in ipairs(parts) do
    out[i] = struct.pack('>I4', #part) .. part
  end
  return table.concat(out)
end

function F.unframe(bytes)
  local parts, at, size = {}, 1, 0
  while at <= #bytes do
    size, at = struct.unpack('>I4', bytes, at)
    parts[#parts + 1] = string.sub(bytes, at, at + size - 1)
    at = at + size
  end
  return parts
end

-- Text as a prefix that sorts like the text and ends by itself: what follows never begins with byte 255.
function F.ordered(text)
  return (string.gsub(text, '%z', '\0\255')) .. '\0'
end

-- The text of an ordered() that begins at `at`, and where what follows it begins.
function F.unordered(bytes, at)
  local from = at
  while true do
    local zero = string.find(bytes, '\0', from, true)
    if string.byte(bytes, zero + 1) ~= 255 then
      return (string.gsub(string.sub(bytes, at, zero - 1), '%z\255', '\0')), zero + 1
    end
    from = zero + 2
  end
end

-- Is a > b, byte by byte? The operator of Lua follows the server's locale.
function F.bytes_after(a, b)
  for i = 1, math.min(#a, #b) do
    local x, y = string.byte(a, i), string.byte(b, i)
    if x ~= y then
      return x > y
    end
  end
  return #a > #b
end

-- Is (stamp, op) a later place than (other_stamp, other_op)?
function F.later(stamp, op, other_stamp, other_op)
  if stamp ~= other_stamp then
    return stamp > other_stamp
  end
  return F.bytes_after(op, other_op)
end

-- A command with any number of arguments: unpack() has a limit. `step` keeps pairs together.
function F.call_many(command, key, list)
  for from = 1, #list, 1000 do
    redis.call(command, key, unpack(list, from, math.min(from + 999, #list)))
  end
end

-- The server's clock in microseconds, or the one a test sets.
function F.clock_us(given)
  if given ~= '' then
    return tonumber(given)
  end
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000000 + tonumber(time[2])
end
