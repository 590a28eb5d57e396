"""Rendering of a ``CompileReport``: JSON, terminal, HTML, Markdown, comparisons. Nothing here decides.

Modules, in reading order: ``words`` (figures as text), ``digest`` (what a report says), ``document``
(report.json), ``plan_facts`` and ``card`` (the quantization card), ``layout``, ``terminal`` and ``views``
(rich), ``html``, ``summary`` (Markdown), ``compare`` and ``diff``.
"""
