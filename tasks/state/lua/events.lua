-- A job's events in two streams: `events_key` has them all but progress, and `progress_key` a sample
-- of the progress. Positions are unique over both and in the order of writing, so that a reader
-- resumes both after one position.

local progress_key = job_key .. keys.progress_suffix

local function parse_position(position)
  local ms, number = string.match(position, '^(%d+)%-(%d+)$')
  return tonumber(ms), tonumber(number)
end

-- Of a job whose record does not know it: the first version recorded none.
local function newest_in_streams()
  local newest_ms, newest_number = 0, 0
  for _, stream in ipairs({events_key, progress_key}) do
    if redis.call('EXISTS', stream) == 1 then
      local info = redis.call('XINFO', 'STREAM', stream)
      for i = 1, #info, 2 do
        if info[i] == 'last-generated-id' then
          local ms, number = parse_position(info[i + 1])
          if ms > newest_ms or ms == newest_ms and number > newest_number then
            newest_ms, newest_number = ms, number
          end
        end
      end
    end
  end
  return string.format('%.0f-%.0f', newest_ms, newest_number)
end

local function position_after(newest)
  local newest_ms, number = parse_position(newest)
  local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
  if now_ms > newest_ms then return string.format('%.0f-0', now_ms) end
  return string.format('%.0f-%.0f', newest_ms, number + 1)
end

local function append(stream, event)
  local position = position_after(get('newest_event') or newest_in_streams())
  local reply = redis.pcall('XADD', stream, position, keys.event_field, event)
  if type(reply) == 'table' and reply.err then
    -- The record is older than its streams: it was restored, or another version wrote them.
    position = position_after(newest_in_streams())
    redis.call('XADD', stream, position, keys.event_field, event)
  end
  set({newest_event = position})
  local count = redis.call('XLEN', stream)
  if count == 1 then renew_ttl(stream) end
  return position, count
end

-- Far above what a job needs; what is dropped is reported in its place.
local function drop_oldest_events(count)
  redis.call('XTRIM', events_key, 'MAXLEN', math.floor(count / 2))
  local bytes = 0
  for _, entry in ipairs(redis.call('XRANGE', events_key, '-', '+')) do
    bytes = bytes + #entry[2][2]
  end
  set({event_bytes = bytes})
  append(events_key, cjson.encode({kind = 'note', level = 'warning', message = string.format(
    'the %d oldest events were dropped: a job keeps %d events of %d bytes in all',
    math.ceil(count / 2), limits.events, limits.event_bytes)}))
end

-- Appends an event other than progress.
local function append_event(event)
  local _, count = append(events_key, event)
  local bytes = add_to('event_bytes', #event)
  if count > limits.events or bytes > limits.event_bytes then drop_oldest_events(count) end
  report(event)
end

-- Writes the sample again, without every second event of `thinned_stage` if that is not nil. Deleted
-- entries of a stream keep their memory; those of a deleted stream do not.
local function rewrite_progress(thinned_stage)
  local entries = redis.call('XRANGE', progress_key, '-', '+')
  redis.call('DEL', progress_key)
  local is_kept = false
  for _, entry in ipairs(entries) do
    local position, event = entry[1], entry[2][2]
    local is_thinned = cjson.decode(event).stage == thinned_stage
    if is_thinned then is_kept = not is_kept end
    if is_kept or not is_thinned then
      redis.call('XADD', progress_key, position, keys.event_field, event)
    end
  end
  renew_ttl(progress_key)
end

-- Samples the progress of a whole stage: every `stride`-th event, and the newest. The stride doubles
-- whenever the sample is full.
local function append_progress(event, stage)
  local field = 'progress:' .. stage
  local sample = cjson.decode(get(field) or '{"seen": 0, "stride": 1, "kept": 0, "deleted": 0}')
  if sample.newest then
    sample.deleted = sample.deleted + redis.call('XDEL', progress_key, sample.newest)
  end
  local position = append(progress_key, event)
  local is_kept = sample.seen % sample.stride == 0
  sample.newest = not is_kept and position or nil
  sample.kept = sample.kept + (is_kept and 1 or 0)
  sample.seen = sample.seen + 1
  if sample.kept > limits.progress then
    rewrite_progress(stage)
    sample.stride, sample.kept, sample.deleted = sample.stride * 2, math.ceil(sample.kept / 2), 0
  elseif sample.deleted > limits.progress then
    rewrite_progress()
    sample.deleted = 0
  end
  set({[field] = cjson.encode(sample)})
  report(event)
end

local function append_events(events)
  for _, event in ipairs(events) do
    local decoded = cjson.decode(event)
    if decoded.kind == 'progress' then append_progress(event, decoded.stage)
    else append_event(event) end
  end
end
