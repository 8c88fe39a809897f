"""A room of attendees in Azure ML: a compute instance each, from one CSV, and nothing left over.

attendees.py   who comes, and what their instances are called
prices.py      what an hour costs, by a file of the instructor's
script.py      what an instance runs once, before the doors open (setup.sh)
instance.py    what an instance is asked to be, and what its states mean
workspace.py   created, checked and deleted in the workspace, by Azure ML's SDK
"""
