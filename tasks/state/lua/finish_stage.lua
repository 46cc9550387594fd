-- Records that a stage is done, and sends the next one's message unless the job waits for its
-- tenant's share. Returns 'superseded', 'sent' or 'waiting'.

-- include: job.lua

local earlier = earlier_reply(change_id)
if earlier then return earlier end
if is_superseded(token) then return 'superseded' end
set(fields)
set({stage_state = 'done'})
if is_gpu_used == '1' then end_gpu_time(now) else drop_gpu_time() end
append_event(event)
local outcome = 'sent'
if is_shared == '1' then outcome = send_or_wait(next_queue, message)
elseif next_queue ~= '' then push(next_queue, message) end
add_counts(counts)
return save_change(change_id, outcome)
