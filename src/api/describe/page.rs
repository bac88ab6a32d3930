//! The page for people: the description as HTML, without scripts or anything from elsewhere, so that
//! it shows under the strictest Content-Security-Policy.

use std::fmt::Write as _;

use serde_json::{Map, Value};

const METHODS: [&str; 5] = ["get", "post", "put", "patch", "delete"];

/// The whole page. Every text of the description is escaped.
pub(super) fn render(description: &Value) -> String {
    let info = &description["info"];
    let title = escaped(text(&info["title"]));
    let mut page = Page {
        description,
        html: String::with_capacity(64 * 1024),
    };
    page.raw("<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n");
    page.raw("<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n");
    page.raw(&format!("<title>{title}: the API</title>\n"));
    page.raw("<link rel=\"stylesheet\" href=\"/api/docs.css\">\n</head>\n<body>\n");
    let version = escaped(text(&info["version"]));
    page.raw(&format!("<h1>{title} <small>{version}</small></h1>\n"));
    page.paragraphs(text(&info["summary"]));
    page.paragraphs(text(&info["description"]));
    page.raw("<p>For programs: <a href=\"/api/openapi.json\">openapi.json</a>.</p>\n");
    page.contents();
    for tag in items(&description["tags"]) {
        page.tag(tag);
    }
    page.answers();
    page.schemas();
    page.raw("</body>\n</html>\n");
    page.html
}

struct Page<'a> {
    description: &'a Value,
    html: String,
}

impl<'a> Page<'a> {
    fn raw(&mut self, html: &str) {
        self.html.push_str(html);
    }

    /// Text with a blank line between paragraphs, and `code` between backticks.
    fn paragraphs(&mut self, text: &str) {
        for paragraph in text.split("\n\n").filter(|text| !text.trim().is_empty()) {
            let paragraph = inline(paragraph.trim());
            self.raw(&format!("<p>{paragraph}</p>\n"));
        }
    }

    /// Every operation with its tag: method, path and what it says.
    fn operations(&self) -> impl Iterator<Item = (&'static str, &'a str, &'a Value)> + use<'a> {
        let description = self.description;
        entries(&description["paths"]).flat_map(|(path, item)| {
            METHODS.into_iter().filter_map(move |method| {
                let operation = item.get(method)?;
                Some((method, path, operation))
            })
        })
    }

    fn contents(&mut self) {
        self.raw("<nav>\n<ul>\n");
        let operations: Vec<_> = self.operations().collect();
        for (method, path, operation) in operations {
            let id = escaped(text(&operation["operationId"]));
            let summary = inline(text(&operation["summary"]));
            let (method, path) = (method.to_uppercase(), escaped(path));
            self.raw(&format!(
                "<li><a href=\"#{id}\"><code>{method} {path}</code></a> {summary}</li>\n"
            ));
        }
        self.raw("</ul>\n</nav>\n");
    }

    fn tag(&mut self, tag: &Value) {
        let name = text(&tag["name"]);
        self.raw(&format!("<h2>{}</h2>\n", escaped(name)));
        self.paragraphs(text(&tag["description"]));
        let operations: Vec<_> = self.operations().collect();
        for (method, path, operation) in operations {
            if items(&operation["tags"]).any(|of| of == name) {
                self.operation(method, path, operation);
            }
        }
    }

    fn operation(&mut self, method: &str, path: &str, operation: &'a Value) {
        let id = escaped(text(&operation["operationId"]));
        let (method, shown) = (method.to_uppercase(), escaped(path));
        self.raw(&format!(
            "<section id=\"{id}\">\n<h3><code>{method} {shown}</code></h3>\n"
        ));
        self.paragraphs(text(&operation["summary"]));
        self.paragraphs(text(&operation["description"]));
        self.asks(operation);
        self.parameters(path, operation);
        let body = &operation["requestBody"];
        if !body.is_null() {
            let required = body["required"] == true;
            self.raw(if required {
                "<h4>Body</h4>\n"
            } else {
                "<h4>Body (optional)</h4>\n"
            });
            self.contents_of(&body["content"]);
        }
        self.raw("<h4>Answers</h4>\n<table>\n");
        for (status, answer) in entries(&operation["responses"]) {
            let name = reference(answer);
            let answer = self.resolved(answer);
            let said = inline(text(&answer["description"]));
            let status = escaped(status);
            self.raw(&format!("<tr><td>{status}</td><td>{said}"));
            if let Some(name) = name {
                let name = escaped(name);
                self.raw(&format!(" <a href=\"#answer-{name}\">{name}</a>"));
            } else {
                self.contents_of(&answer["content"]);
            }
            self.raw("</td></tr>\n");
        }
        self.raw("</table>\n</section>\n");
    }

    /// What the caller must have.
    fn asks(&mut self, operation: &Value) {
        let Some(first) = items(&operation["security"]).next() else {
            return;
        };
        let mut scopes = entries(first).flat_map(|(_, scopes)| items(scopes));
        let asks = match (entries(first).next(), scopes.next()) {
            (None, _) => "Anyone may call it.".to_owned(),
            (Some(_), None) => "Needs an API key.".to_owned(),
            (Some(_), Some(scope)) => {
                let scope = escaped(text(scope));
                format!("Needs a key or an access token with the scope <code>{scope}</code>.")
            }
        };
        self.raw(&format!("<p>{asks}</p>\n"));
        let role = text(&operation["x-role"]);
        if !role.is_empty() {
            let role = escaped(role);
            self.raw(&format!(
                "<p>Of a user with the role <code>{role}</code>.</p>\n"
            ));
        }
    }

    fn parameters(&mut self, path: &str, operation: &'a Value) {
        let description = self.description;
        let shared = items(&description["paths"][path]["parameters"]);
        let parameters: Vec<&Value> = shared.chain(items(&operation["parameters"])).collect();
        if parameters.is_empty() {
            return;
        }
        self.raw("<h4>Parameters</h4>\n<table>\n");
        for parameter in parameters {
            let parameter = self.resolved(parameter);
            let name = escaped(text(&parameter["name"]));
            let place = escaped(text(&parameter["in"]));
            let kind = self.kind(&parameter["schema"]);
            let said = inline(text(&parameter["description"]));
            self.raw(&format!(
                "<tr><td><code>{name}</code></td><td>{place}</td><td>{kind}</td><td>{said}</td></tr>\n"
            ));
        }
        self.raw("</table>\n");
    }

    /// Bodies by their types.
    fn contents_of(&mut self, content: &Value) {
        let rows: Vec<String> = entries(content)
            .map(|(kind, body)| {
                let (kind, schema) = (escaped(kind), self.kind(&body["schema"]));
                format!("<li><code>{kind}</code>: {schema}</li>\n")
            })
            .collect();
        if !rows.is_empty() {
            self.raw(&format!("<ul>\n{}</ul>\n", rows.concat()));
        }
    }

    /// The answers that many operations have.
    fn answers(&mut self) {
        self.raw("<h2>Answers</h2>\n");
        let description = self.description;
        for (name, answer) in entries(&description["components"]["responses"]) {
            let name = escaped(name);
            self.raw(&format!(
                "<section id=\"answer-{name}\">\n<h3>{name}</h3>\n"
            ));
            self.paragraphs(text(&answer["description"]));
            self.contents_of(&answer["content"]);
            self.raw("</section>\n");
        }
    }

    fn schemas(&mut self) {
        self.raw("<h2>Bodies</h2>\n");
        let description = self.description;
        for (name, schema) in entries(&description["components"]["schemas"]) {
            let name = escaped(name);
            self.raw(&format!(
                "<section id=\"schema-{name}\">\n<h3>{name}</h3>\n"
            ));
            self.paragraphs(text(&schema["description"]));
            let properties = entries(&schema["properties"]);
            if schema["properties"].is_null() {
                let kind = self.kind(schema);
                self.raw(&format!("<p>{kind}</p>\n"));
            }
            self.raw("<table>\n");
            for (field, of) in properties {
                let required = items(&schema["required"]).any(|name| name == field);
                let mark = if required { "" } else { " (optional)" };
                let (field, kind) = (escaped(field), self.kind(of));
                let said = inline(text(&of["description"]));
                self.raw(&format!(
                    "<tr><td><code>{field}</code>{mark}</td><td>{kind}</td><td>{said}</td></tr>\n"
                ));
            }
            self.raw("</table>\n</section>\n");
        }
    }

    /// What a value may be, in a few words.
    fn kind(&self, schema: &Value) -> String {
        if let Some(name) = reference(schema) {
            let name = escaped(name);
            return format!("<a href=\"#schema-{name}\">{name}</a>");
        }
        for (key, between) in [("allOf", ", "), ("anyOf", " or ")] {
            let parts: Vec<String> = items(&schema[key]).map(|part| self.kind(part)).collect();
            if !parts.is_empty() {
                return parts.join(between);
            }
        }
        if let Some(value) = schema.get("const") {
            return format!("<code>{}</code>", escaped(&plain(value)));
        }
        let values: Vec<String> = items(&schema["enum"])
            .map(|value| format!("<code>{}</code>", escaped(&plain(value))))
            .collect();
        if !values.is_empty() {
            return values.join(", ");
        }
        if schema["type"].is_null() {
            let codes: Vec<String> = entries(&schema["properties"])
                .map(|(name, of)| format!("<code>{}</code>: {}", escaped(name), self.kind(of)))
                .collect();
            return codes.join("; ");
        }
        let types: Vec<String> = match &schema["type"] {
            Value::Array(types) => types.iter().map(plain).collect(),
            one => vec![plain(one)],
        };
        let mut kind = escaped(&types.join(" or "));
        if !schema["items"].is_null() {
            let _ = write!(kind, " of {}", self.kind(&schema["items"]));
        }
        for (key, name) in [
            ("format", ""),
            ("minimum", "from "),
            ("maximum", "to "),
            ("default", "default "),
        ] {
            if let Some(value) = schema.get(key) {
                let _ = write!(kind, ", {name}{}", escaped(&plain(value)));
            }
        }
        kind
    }

    /// What a reference points at.
    fn resolved(&self, value: &'a Value) -> &'a Value {
        let pointer = value["$ref"].as_str().and_then(|at| at.strip_prefix('#'));
        pointer
            .and_then(|pointer| self.description.pointer(pointer))
            .unwrap_or(value)
    }
}

/// The name of what is referred to.
fn reference(value: &Value) -> Option<&str> {
    value["$ref"].as_str()?.rsplit('/').next()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn plain(value: &Value) -> String {
    value
        .as_str()
        .map_or_else(|| value.to_string(), str::to_owned)
}

fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn entries(value: &Value) -> impl Iterator<Item = (&str, &Value)> {
    let entries = value.as_object().into_iter().flat_map(Map::iter);
    entries.map(|(name, value)| (name.as_str(), value))
}

/// Text as HTML, with what stands between backticks as code.
fn inline(text: &str) -> String {
    let mut html = String::with_capacity(text.len());
    for (at, part) in text.split('`').enumerate() {
        let part = escaped(part);
        if at % 2 == 1 {
            let _ = write!(html, "<code>{part}</code>");
        } else {
            html.push_str(&part);
        }
    }
    html
}

/// What can stand in an element and in a quoted attribute.
fn escaped(text: &str) -> String {
    let mut html = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => html.push_str("&amp;"),
            '<' => html.push_str("&lt;"),
            '>' => html.push_str("&gt;"),
            '"' => html.push_str("&quot;"),
            '\'' => html.push_str("&#39;"),
            other => html.push(other),
        }
    }
    html
}
