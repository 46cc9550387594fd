-- Removes a job whose results are stored, unless it was replayed and has ended again since.
if tonumber(redis.call('ZSCORE', unstored_results, job_id) or '') == tonumber(ended_at) then
  redis.call('ZREM', unstored_results, job_id)
end
