//! `GET /`: the page for people. Four files, as they stand in `src/api/page`: what they show they ask of
//! `/status`, and nothing of another place is loaded, which the policy holds the browser to.

use axum::{
    Router,
    http::header::{
        CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
    },
    response::IntoResponse,
    routing::get,
};

/// Scripts, styles and requests from and to this listener only; no text becomes markup
/// (`require-trusted-types-for`), nothing is sent away, nobody puts the page into a frame.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
                      img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
                      require-trusted-types-for 'script'; trusted-types 'none'";

/// The page and its parts.
pub(super) fn router<S: Clone + Send + Sync + 'static>() -> Router<S> {
    let javascript = "text/javascript; charset=utf-8";
    Router::new()
        .route("/", get(|| file("text/html; charset=utf-8", include_str!("page/index.html"))))
        .route("/page.css", get(|| file("text/css; charset=utf-8", include_str!("page/page.css"))))
        .route("/page.js", get(move || file(javascript, include_str!("page/page.js"))))
        .route("/draw.js", get(move || file(javascript, include_str!("page/draw.js"))))
}

async fn file(kind: &'static str, text: &'static str) -> impl IntoResponse {
    let headers = [
        (CONTENT_TYPE, kind),
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
        // The next version of the daemon has another page.
        (CACHE_CONTROL, "no-cache"),
    ];
    (headers, text)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_page_names_nothing_outside_and_makes_no_markup_of_text() {
        let parts = [
            include_str!("page/index.html"),
            include_str!("page/page.css"),
            include_str!("page/page.js"),
            include_str!("page/draw.js"),
        ];
        for part in parts {
            // The name of SVG's elements is no address.
            let part = part.replace("http://www.w3.org/2000/svg", "");
            for word in ["://", "innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("] {
                assert!(!part.contains(word), "{word}");
            }
        }
    }
}
