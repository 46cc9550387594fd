-- Records that a stage is done. Returns 'superseded'; 'sent' if the next stage's message is to be
-- sent now, which is always so without a `fair_share_queue`; or 'waiting'.

-- include: job.lua

local earlier = earlier_reply(change_id)
if earlier then return earlier end
if is_superseded(token) then return 'superseded' end
set(fields)
set({stage_state = 'done'})
append_event(event)
local outcome = fair_share_queue == '' and 'sent' or send_or_wait(fair_share_queue)
add_counts(counts)
return save_change(change_id, outcome)
