"""``moergate compare`` and ``moergate score``: policies and experts on one's own tasks, through a running gateway.

tasks        labelled prompts from a folder
client       what is asked of the gateway, over HTTP
run          decisions of every policy, generations of every recipe, each done once
stats        from results to figures with intervals; pure functions
report       the figures as JSON Lines, Markdown and one HTML page
"""
