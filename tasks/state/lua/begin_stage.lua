-- Begins a stage, or says why not. Returns {outcome} or {'begun', attempt, fields, candidates}: the
-- queue has room for one more message.

-- include: job.lua

if not exists() then return {'unknown'} end
local function begun() return {'begun', get('attempt'), all_fields(), dispatch_candidates()} end

if earlier_reply(change_id) then return begun() end
if has_ended() then return {'ended'} end

local wanted = tonumber(stage_number)
local current = tonumber(get('stage_number'))
local state = get('stage_state')
local was_running = wanted == current and state == 'running'
if wanted < current then return {'duplicate'} end
if wanted == current and state == 'done' then return {'done'} end
if was_running and is_message_held(unacked_index) then return {'duplicate'} end
-- We send no message that is ahead of its job.
local is_next = wanted == current + 1 and (current == 0 or state == 'done')
if wanted > current and not is_next then return {'duplicate'} end

if was_running then end_gpu_time(get('alive_at')) end
local status = get('status')
if status == 'pausing' or status == 'paused' then
  set({status = 'paused'})
  if state == 'running' then set({stage_state = 'queued'}) end
  leave_tenant_queue()
  remove_from_flight()
  save()
  return {'paused'}
end

-- A newer job or message waits for a worker of its version: any worker may take the next message.
local version = math.max(tonumber(get('version') or 1), tonumber(message_version))
if version > tonumber(worker_version) then
  if state == 'running' then set({stage_state = 'queued'}) end
  leave_tenant_queue()
  set_due_in(retry_in_s)
  local is_first = not get('deferred_by')
  if is_first then
    set({deferred_by = worker})
    append_event(cjson.encode({kind = 'note', level = 'info', message = string.format(
      '%s waits for a worker of version %d; %s is of version %d',
      stage, version, worker, worker_version)}))
  end
  save()
  return {is_first and 'newer' or 'still_newer'}
end
set({version = worker_version})

if wanted > current then set({starts = 0, retries = 0}) end
if add_to('starts', 1) > tonumber(max_starts) then
  set({error_code = 'trainer_failed', error_stage = stage, error = exhausted_message})
  finish('failed', true)
  append_event(exhausted_event)
  save()
  return {'exhausted'}
end

local attempt = add_to('attempt', 1)
if was_running then count(metrics.takeovers, stage) end
if status == 'queued' then set({status = 'running'}) end
clear_due()
unset('unstarted')
leave_tenant_queue()
put_in_flight()
set({stage = stage, stage_number = wanted, stage_state = 'running', delivery_tag = delivery_tag})
set({['stage:' .. stage] = cjson.encode({
  queue = queue, worker = worker, attempt = attempt, started_at = tonumber(now)})})
begin_gpu_time(gpu_class, gpu_price, currency)
append_event(cjson.encode({
  kind = 'stage_started', stage = stage, attempt = attempt, queue = queue, worker = worker}))
save_change(change_id, 'begun')
return begun()
