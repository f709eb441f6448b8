"""The demo: a Gradio app that shows a policy think and move (`hf-vla demo`).

| file | knows |
|---|---|
| `app.py` | the page, and the model that it shows |
| `predict_tab.py`, `watch_tab.py`, `inside_tab.py` | one tab each: layout and handlers |
| `observation.py` | limits of what visitors may give |
| `policies.py` | which policies are loaded, and the untrained one |
| `episodes.py` | a policy in a simulator, frame by frame |
| `worker.py` | the one thread that works, cancelling, errors as messages |
| `plots.py`, `parts.py`, `style.css` | how it looks |
"""
