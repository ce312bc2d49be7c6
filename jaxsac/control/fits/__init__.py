"""Fits of a task: imitation, utility, robust, pairs of tools, tools' features, epochs."""
