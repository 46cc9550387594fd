-- Cancels the job: now unless its stage runs or there is something to save. Returns 'unknown' or
-- the job's status. A job between two stages ends here; the next message finds it ended. A waiting
-- job is saved by publishing the checkpoints it has.

-- include: job.lua

if not exists() then return 'unknown' end
if has_ended() then return get('status') end
local is_running = get('stage_state') == 'running'
local checkpoints = redis.call('HGET', job_key, 'artifact:checkpoints')
local can_save = save_on_cancel == '1' and checkpoints and checkpoints ~= '[]'
if is_running or can_save then
  set({status = 'cancelling', save_on_cancel = save_on_cancel})
end
if not is_running and can_save and tonumber(get('stage_number')) < 4 then
  set({stage = 'train', stage_number = 3, stage_state = 'done'})
  clear_due()
  leave_tenant_queue()
  put_in_flight()
elseif not is_running and not can_save then
  set({error_code = 'cancelled', error_stage = get('stage'), error = message})
  finish('cancelled')
  append_event(event)
end
save()
return get('status')
