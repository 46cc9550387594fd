-- Holds the results of an ended job for `seconds`, while they are copied; 0 releases them. Returns
-- 1, or 0 if the job has not ended or was deleted.

-- include: job.lua

if not has_ended() then return 0 end
if tonumber(seconds) > 0 then
  set({copied_until = string.format('%.6f', now + seconds)})
else
  unset('copied_until')
  write_hash()
end
return 1
