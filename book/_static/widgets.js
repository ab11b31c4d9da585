// What the widgets' script expects of a page, and a page of this book does not have by itself.

// It looks for its icons' fonts by the names of its modules, which require.js would take to lie beside the page.
{
  const folder = new URL("vendor/html-manager", document.currentScript.src).href;
  window.require = { paths: { "@jupyter-widgets": folder, "@jupyter-widgets/html-manager/dist": folder } };
}

// It has labels typeset through the interface of MathJax 2; the page has MathJax 3.
document.addEventListener("DOMContentLoaded", () => {
  if (window.MathJax) {
    const typeset = ([, , element]) => MathJax.startup.promise.then(() => MathJax.typesetPromise([element]));
    MathJax.Hub = { Queue: typeset };
  }
});
