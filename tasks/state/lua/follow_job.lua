-- Lets another Celery result follow the job. Returns 'followed', 'ended' or 'unknown', which change
-- nothing, or 'full': the job has as many results as it may.

-- include: job.lua

if not exists() then return 'unknown' end
if has_ended() then return 'ended' end
local others = cjson.decode(get('other_result_ids') or '[]')
if get('result_id') == result_id then return 'followed' end
for _, other in ipairs(others) do
  if other == result_id then return 'followed' end
end
if #others + 1 >= limits.results then return 'full' end
table.insert(others, result_id)
set({other_result_ids = cjson.encode(others)})
save()
return 'followed'
