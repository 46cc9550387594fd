-- Appends events and sets fields for a start. Returns 1, or 0 if the start is superseded.

-- include: job.lua

if earlier_reply(change_id) then return 1 end
if is_superseded(token) then return 0 end
set(fields)
note_alive()
append_events(events)
add_counts(counts)
return save_change(change_id, 1)
