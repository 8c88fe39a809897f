"""`./lab nightly`: a run that nobody watches, and one page that says in a minute what it found.

parts.py   what runs, one after the other
causes.py  what a failure is called, and where it began
nights.py  this night's figures beside those of the last good nights
page.py    the page, as HTML and Markdown
audit.py   known weaknesses of the locked packages, and a list of what is in them
"""
