-- Gives a stage back, so that a later message may begin it: at once, or after `delay_s`. Returns
-- 'superseded' or the job's status; nothing changes while the job is being cancelled.

-- include: job.lua

local earlier = earlier_reply(change_id)
if earlier then return earlier end
if is_superseded(token) then return 'superseded' end
local status = get('status')
if status == 'cancelling' then return status end
set({stage_state = 'queued', starts = 0})
set(fields)
if is_gpu_used == '1' then end_gpu_time(now) else drop_gpu_time() end
append_event(event)
add_counts(counts)
if status == 'pausing' then
  status = 'paused'
  set({status = status})
  remove_from_flight()
elseif delay_s ~= '' then
  set_due_in(delay_s)
end
return save_change(change_id, status)
