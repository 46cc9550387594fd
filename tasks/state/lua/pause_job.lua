-- Pauses the job: now unless its stage runs. Returns 'unknown' or the job's status.

-- include: job.lua

if not exists() then return 'unknown' end
local status = get('status')
if status ~= 'queued' and status ~= 'running' then return status end
status = get('stage_state') == 'running' and 'pausing' or 'paused'
set({status = status})
clear_due()
leave_tenant_queue()
if status == 'paused' then remove_from_flight() end
append_event(event)
save()
return status
