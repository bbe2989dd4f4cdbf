-- Messages: _engine.py's _message.

F.need_messages()

MERGE[KIND.message] = function(m, e)
  if m.stamp > row.session_dead then
    F.save_message(m.op, m.place, m.stamp, m.occurred_at, e.body)
    m.place = m.stamp
  end
end

DECIDE[KIND.message] = F.yes
