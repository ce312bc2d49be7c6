"""Good calls of the public functions, for the test that makes them wrong."""

import jaxsac

TOOLS = {"draw": {"description": "Draw a chart."}, "mail": {"description": "Send a mail."}}
CALLS = {"Router": lambda: {"content": jaxsac.Router.from_tools(TOOLS).content}}
