-- Ids that clean-up may remove. KEYS: idle and due of each bucket. ARGV: now ('' for the server's clock), before, limit.
-- Answers triples of id, before, scope.

local NOW, BEFORE, LIMIT = F.clock_us(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local answer, count = {}, 0

-- A session's turn comes before that of the thread of the same id.
local function session_due(key, id)
  for _, class in ipairs({ 'a', 'e', 'n' }) do
    local expires = redis.call('ZSCORE', key, class .. id)
    if expires and tonumber(expires) <= NOW then
      return true
    end
  end
  return false
end

local function add(id, before, scope)
  answer[#answer + 1], answer[#answer + 2], answer[#answer + 3] = id, before, scope
  count = count + 1
end

for i = 1, #KEYS, 2 do
  if count >= LIMIT then
    break
  end
  local idle = redis.call('ZRANGEBYSCORE', KEYS[i], '-inf', '(' .. F.int(BEFORE), 'LIMIT', 0, LIMIT - count)
  for _, id in ipairs(idle) do
    add(id, BEFORE, 'all')
  end
  local from = 0
  while count < LIMIT do
    local due = redis.call('ZRANGEBYSCORE', KEYS[i + 1], '-inf', F.int(NOW), 'WITHSCORES', 'LIMIT', from, LIMIT)
    for n = 1, #due, 2 do
      local id, class = string.sub(due[n], 2), string.sub(due[n], 1, 1)
      local clock = redis.call('ZSCORE', KEYS[i], id)
      local all = clock and tonumber(clock) < BEFORE  -- goes as a whole
      if count < LIMIT and not all and not (class == 't' and session_due(KEYS[i + 1], id)) then
        add(id, tonumber(due[n + 1]) + 1, class == 't' and 'thread' or 'session')
      end
    end
    if #due < 2 * LIMIT then
      break
    end
    from = from + LIMIT
  end
end
return answer
