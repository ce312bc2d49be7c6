"""Simulated logs of tool use."""

from jaxsac.problems.tool_logs.simulation import (
    ToolLog as ToolLog,
    sparse_tool_log as sparse_tool_log,
)
