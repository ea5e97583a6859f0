//! The OpenAPI document, out of what is served.

use serde_json::{Map, Value, json};

/// Something that can be asked, for the document.
pub struct Operation {
    /// HTTP's verb.
    pub method: &'static str,
    /// Its path.
    pub path: &'static str,
    /// What it does.
    pub summary: &'static str,
    /// Whether it is answered without a token.
    pub open: bool,
    /// What may stand in its query: name, schema, whether it must.
    pub query: Vec<(&'static str, Value, bool)>,
    /// Media type and schema of its body.
    pub body: Option<(&'static str, Value)>,
    /// Status and media type of its answer.
    pub answer: (u16, &'static str),
    /// Statuses of what may go wrong.
    pub errors: &'static [u16],
}

/// What every answer may be instead.
const ALWAYS: [(u16, &str); 3] = [
    (401, "a token is needed"),
    (403, "an admin's token, or another host, is needed"),
    (429, "too many requests"),
];
/// What a request that cannot be read gets.
const UNREADABLE: [(u16, &str); 4] = [
    (400, "it makes no sense"),
    (413, "the body is too long"),
    (415, "the body is no text"),
    (422, "it cannot be done"),
];

/// The document.
pub fn document(operations: impl Iterator<Item = Operation>) -> Value {
    let mut paths: Map<String, Value> = Map::new();
    for operation in operations {
        let path = paths.entry(operation.path).or_insert_with(|| json!({}));
        path[operation.method] = describe(&operation);
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "profiler", "version": env!("CARGO_PKG_VERSION"),
            "description": "What the profiler's daemon knows. Answers are {\"data\": …, \"timestamp\": ms}.",
        },
        "paths": paths,
        "components": {
            "securitySchemes": { "token": { "type": "http", "scheme": "bearer" } },
            "schemas": {
                "Data": {
                    "type": "object", "required": ["data", "timestamp"],
                    "properties": { "data": {}, "timestamp": { "type": "integer" } },
                },
                "Error": {
                    "type": "object", "required": ["error"],
                    "properties": { "error": {
                        "type": "object", "required": ["code", "message"],
                        "properties": { "code": { "type": "string" }, "message": { "type": "string" } },
                    } },
                },
            },
        },
    })
}

fn describe(operation: &Operation) -> Value {
    let in_path = operation.path.split('{').skip(1).filter_map(|rest| rest.split('}').next());
    let in_path = in_path
        .map(|name| json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string" } }));
    let in_query = operation.query.iter().map(
        |(name, schema, must)| json!({ "name": name, "in": "query", "required": must, "schema": schema }),
    );
    let error = |words: &str| {
        json!({
            "description": words,
            "content": { "application/json": { "schema": { "$ref": "#/components/schemas/Error" } } },
        })
    };
    let (status, media) = operation.answer;
    let schema = match (media, operation.path) {
        ("application/json", path) if !path.ends_with("openapi.json") => {
            json!({ "$ref": "#/components/schemas/Data" })
        }
        _ => json!({}),
    };
    let mut answers = Map::new();
    answers.insert(
        status.to_string(),
        json!({ "description": "as asked", "content": { media: { "schema": schema } } }),
    );
    let has_input = !operation.query.is_empty() || operation.body.is_some() || operation.path.contains('{');
    let unreadable = UNREADABLE.iter().filter(|_| has_input);
    for (status, words) in ALWAYS.iter().filter(|_| !operation.open).chain(unreadable) {
        answers.insert(status.to_string(), error(words));
    }
    for status in operation.errors {
        let words = match status {
            404 => "there is no such thing",
            412 => "it has been changed meanwhile",
            503 => "not yet, or not now",
            _ => "it makes no sense",
        };
        answers.insert(status.to_string(), error(words));
    }
    let mut described = json!({
        "summary": operation.summary,
        "parameters": in_path.chain(in_query).collect::<Vec<_>>(),
        "responses": answers,
    });
    if !operation.open {
        described["security"] = json!([{ "token": [] }]);
    }
    if let Some((media, schema)) = &operation.body {
        described["requestBody"] =
            json!({ "required": *media == "application/json", "content": { *media: { "schema": schema } } });
    }
    described
}
