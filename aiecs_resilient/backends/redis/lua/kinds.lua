-- Kinds of mutation, and what each does: groups of kinds fill MERGE and DECIDE when they are needed (see _scripts.py).

local KIND = {
  create = 1, update = 2, ending = 3, message = 4, context = 5, checkpoint = 6, writes = 7, prune = 8, delete = 9,
}
local MERGE = {}   -- (mutation, effect): merge it, in whatever order effects arrive
local DECIDE = {}  -- (mutation, dead_session, dead_thread): answer and effect (nil: nothing happens), or nil, nil, refusal
local TRUE, FALSE = '\195', '\194'  -- answers are MessagePack, because a replayed one may be anything

function F.refuse(...)
  return { 0, ... }
end

function F.version_conflict(m, version)
  if m.expected and m.expected ~= version then
    return F.refuse('version', F.int(version))
  end
end

function F.copy(e, a, body)
  return { has = true, a = a, b = e.b, c = e.c, body = body, dead_session = 0, dead_thread = 0 }
end

function F.yes(m)
  return TRUE, m.effect
end
