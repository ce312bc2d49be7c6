"""The main job: read or mine a log of tool uses, learn a sparse router, judge it, report it, save
it. Start at `job.run`.
"""
