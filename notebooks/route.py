# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # From a log of tool calls to a router in an agent's loop
#
# An agent is given a few tools for each task in place of all of them. This notebook goes the whole
# way: a router from the tools' descriptions, one that has learnt from a log, when it should offer
# nothing, what one router's log says about the next, and when to learn again.

# %%
import contextlib
import io
import json
import os
import pathlib
import random
import tempfile

import matplotlib.pyplot as plt
import numpy as np

import jaxsac
from jaxsac import plotting
from jaxsac.__main__ import main

folder = tempfile.TemporaryDirectory()
os.chdir(folder.name)

# %% [markdown]
# ## Tools, and how people ask for them
#
# A small office, simulated, so that the truth is known. Each tool has a description, and people ask
# for it in words of their own, which are often not the description's; some words mean one of
# several tools. The last two belong to a team that joins later.

# %%
CATALOGUE = """
sales_query | Run a query on the sales database. | revenue of {place}; what {place} turned over
ticket_search | Search the support tickets. | who complained in {month}; why {place} is angry
staff_lookup | Find an employee in the directory. | who runs {place}; the phone number of {name}
file_search | Search files by name and content. | that memo of {name}; dig up the {month} contract
web_search | Search the web. | what the papers write; google {place}
bar_chart | Draw a chart with bars. | compare them side by side; draw it
line_chart | Draw a chart of a time series. | show how it went over the year; draw it
document_write | Write a text document. | write it up; two pages about it
forecast_fit | Extrapolate a time series. | where it is heading; guess next {month}
mail_send | Send an e-mail. | let {name} know; drop {name} a line
chat_post | Post a message to a channel. | let {name} know; tell the team
meeting_create | Create an event in a calendar. | get {name} and me in a room; an hour with {name}
wiki_publish | Publish a page on the wiki. | write it up; so that everybody finds it
truck_route | Plan the tour of a vehicle. | the quickest way round {place}; who drives to {place}
pallet_scan | Read the label of a pallet. | what is in bay seven; identify the load from {place}
"""
TOOLS, ASKS = {}, {}
for line in CATALOGUE.strip().splitlines():
    name, description, asks = line.split(" | ")
    TOOLS[name], ASKS[name] = {"description": description}, asks.split("; ")
NAMES = list(TOOLS)
find, make, tell, new = NAMES[:5], NAMES[5:9], NAMES[9:13], NAMES[13:]
TALK = ["good morning", "thanks, that was great", "sorry, never mind", "you are funny", "ok then"]
FILLERS = {
    "place": ["Leeds", "Turin", "Osaka", "Quito", "Perth", "Accra", "Bergen", "Malmo"],
    "name": ["Dana", "Ravi", "Chen", "Olu", "Mika", "Sofia", "Jonas", "Ines"],
    "month": ["January", "March", "April", "June", "August", "October"],
}


def tasks(seed, sessions, starts=find):
    """Four tasks a session: (text, the tools that it takes, session)."""
    draw = random.Random(seed)
    for session in range(sessions):
        words = {kind: draw.choice(some) for kind, some in FILLERS.items()}
        for _ in range(4):
            needed = [draw.choice(starts)]
            needed += [draw.choice(some) for some in (make, tell) if draw.random() < 0.6]
            text = ", ".join(draw.choice(ASKS[tool]).format(**words) for tool in needed)
            if draw.random() < 0.1:
                text, needed = f"{draw.choice(TALK)}, {words['name']}", []
            yield text, needed, f"{seed}.{session}"


pathlib.Path("tools.json").write_text(json.dumps(TOOLS))
history = [{"context": text, "tools": used, "group": group} for text, used, group in tasks(1, 100)]
pathlib.Path("calls.jsonl").write_text("".join(json.dumps(record) + "\n" for record in history))
print(*map(json.dumps, history[:4]), sep="\n")

# %% [markdown]
# ## Before there is a log
#
# The descriptions alone make a router. It finds what is asked for in the words of a description,
# and cannot know the rest.

# %%
cold = jaxsac.Router.from_tools("tools.json")
for text in ("send an e-mail to Dana", "drop Dana a line"):
    print(text, *(f"   {one.tool} {one.score:.1f}" for one in cold(text, top=3)), sep="\n")

# %% [markdown]
# ## What the log teaches
#
# In the shell this is `jaxsac route calls.jsonl --out router`. The first lines of its report:


# %%
def learn(*more):
    with contextlib.redirect_stdout(io.StringIO()) as report:
        assert not main(["route", "calls.jsonl", "--out", "router", "--no-curve", "--quiet", *more])
    return report.getvalue(), jaxsac.Router.load("router")


report, router = learn()
print(*[line for line in report.splitlines() if line[:1].strip()][:9], sep="\n")

# %% [markdown]
# New sessions judge both. Left: how many tools must be offered until those that a task takes are
# among them. Middle: of tools shown with a probability of 30 %, 30 % are used. Right: `at_least`
# leaves out what is less probable, and an empty answer means "none of them".

# %%
fresh = list(tasks(2, 150))
texts, needs = [text for text, _, _ in fresh], [set(needed) for _, needed, _ in fresh]
has = np.array([bool(needed) for needed in needs])
figure, (left, middle, right) = plt.subplots(1, 3, figsize=(11, 3.6), layout="constrained")
recall = {}
for label, one in {"descriptions alone": cold, "learnt from the log": router}.items():
    answers = one(texts, top=10)
    hits = [[c.tool in need for c in row] for row, need in zip(answers, needs, strict=True)]
    found = np.cumsum(hits, axis=1)[has] / np.array([[len(need)] for need in needs if need])
    recall[label] = found.mean(axis=0)
    left.plot(range(1, 11), recall[label], ".-", label=label)
left.set(xlabel="tools offered", ylabel="share of the needed tools", ylim=(0, 1.02), title="Recall")
left.legend(frameon=False)

pairs = zip([[c.probability for c in row] for row in answers], hits, strict=True)
order = np.array(sorted(pair for shown, used in pairs for pair in zip(shown, used, strict=True)))
plotting.reliability(middle, *np.mean(np.array_split(order, 10), axis=1).T)
middle.set_title("Probabilities")

bounds, best = np.linspace(0, 0.9, 50), np.array([row[0].probability for row in answers])
right.plot(bounds, [(best[has] >= bound).mean() for bound in bounds], label="tasks answered")
right.plot(bounds, [(best[~has] < bound).mean() for bound in bounds], label="small talk refused")
right.set(xlabel="at_least", ylabel="share", ylim=(0, 1.02), title="None of them")
right.legend(frameon=False)
plt.show()

# %% [markdown]
# `explain` says why: the channels (how the text resembles the tool's own text; what its words and
# the nearest records say), what the log taught about the tool beyond that, and which records.

# %%
(why,) = router.explain("drop Dana a line", top=1)
print(f"{why.tool} {why.score:.1f} = learnt {why.learnt:.1f}, constant {why.constant:.1f},")
print(*(f"  {name} {nats:.1f}" for name, nats in why.channels.items()), sep="\n")

# %% [markdown]
# ## In the agent's loop
#
# Ten lines: route, work, log. Where even the best tool is less probable than the report's
# `at_least`, the agent is offered none and just talks. This one is simulated: of what it is offered
# it uses what the task takes.

# %%
numbers = json.loads(pathlib.Path("router/report.json").read_text())
at_least = numbers["router"]["none"]["at_least"]


def work(task, agent):
    answer = router(task, top=6)
    offered = [choice.tool for choice in answer if answer[0].probability >= at_least]
    used = agent(task, offered)
    with open("calls.jsonl", "a") as log:
        print(json.dumps({"context": task, "tools": used, "shown": offered}), file=log)
    return used


for text, needed, _ in tasks(3, 2):
    used = work(text, lambda _, offered, needed=needed: [one for one in offered if one in needed])
    print(f"{text}: {', '.join(used) or 'none'}")

# %% [markdown]
# ## When to learn again
#
# `monitor` sets the latest records beside the held-out ones of the log. More sessions of the same
# people are no news; a team that comes with tools and words of its own is.


# %%
joined = list(tasks(7, 25)) + list(tasks(8, 25, starts=new))
for label, records in {"as before": list(tasks(6, 50)), "a new team": joined}.items():
    texts, sets, _ = zip(*records, strict=True)
    seen = router.monitor(texts, sets)
    print(f"{label}: learn again: {seen.learn_again}")
    for name, one in zip(seen._fields[1:4], seen[1:4], strict=True):
        print(f"  {name:10} {one.then:.3f} -> {one.now:.3f}, {one.z:+.1f} standard errors worse")

# %% [markdown]
# ## Explore, log, judge
#
# Where the router's choice itself is what is done, `explore` takes the most probable set of the
# router's law or, at a rate of .3 here, draws one from it, and says with which chance; the log
# keeps the outcome beside it. That is enough to judge the law of the *next* router, which has
# chosen nothing yet: the report's value has a wide interval where that law and what was drawn
# hardly agree. Here an outcome is what the tools chosen and those needed have in common, as a
# share of both together.


# %%
def outcome(chosen, needed):
    both = {*chosen} | {*needed}
    return len({*chosen} & {*needed}) / len(both) if both else 1.0


def explored(router, tasks, rate):
    for seed, (text, needed, group) in enumerate(tasks):
        chosen, propensity = router.explore(text, seed, rate=rate)
        record = {"context": text, "tools": chosen, "propensity": propensity, "group": group}
        yield record | {"utility": outcome(chosen, needed)}


with open("calls.jsonl", "a") as log:
    log.writelines(json.dumps(record) + "\n" for record in explored(router, tasks(4, 400), 0.3))
report, following = learn("--update", "router")
print(*[line for line in report.splitlines() if line.startswith(("value", "too few"))])
for label, one in {"first": router, "next": following}.items():
    new = [[r["utility"] for r in explored(one, tasks(5, 500), rate)] for rate in (1.0, 0.0)]
    law, best = np.mean(new, axis=1)
    print(f"{label} router, new tasks: its law {law:.3f}, its most probable sets {best:.3f}")
folder.cleanup()
