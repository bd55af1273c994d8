// A backend without Coldframe's client: the .proto files, @grpc/grpc-js, and nothing else.
//
//     npm install && node client.mjs [HOST:PORT]
//
// It adds an article, searches, recommends to a reader it knows two things of, is refused once, and takes the article
// down again.
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";

import grpc from "@grpc/grpc-js";
import protoLoader from "@grpc/proto-loader";

const ROOT = join(dirname(fileURLToPath(import.meta.url)), "..", "..", "proto");
const MAX_MESSAGE_BYTES = 64 * 1024 * 1024; // gRPC's own limit of 4 MiB is less than 256 long articles
const DEADLINE_MS = 30_000;

const target = process.argv[2] ?? "localhost:50051";
const definition = protoLoader.loadSync(
  ["search_service", "article_service"].map((name) => join(ROOT, "coldframe", "v1", `${name}.proto`)),
  { includeDirs: [ROOT], keepCase: true, longs: String, enums: String, defaults: true, oneofs: true },
);
const { coldframe } = grpc.loadPackageDefinition(definition);
// Asks again where a server is not there for a moment, or turns calls away because more came at once than it looks at.
const AGAIN = {
  methodConfig: [
    {
      name: [{}],
      retryPolicy: {
        maxAttempts: 4,
        initialBackoff: "0.1s",
        maxBackoff: "1s",
        backoffMultiplier: 2,
        retryableStatusCodes: ["UNAVAILABLE", "CANCELLED"],
      },
    },
  ],
  retryThrottling: { maxTokens: 1000, tokenRatio: 0.1 },
};
const options = {
  "grpc.service_config": JSON.stringify(AGAIN),
  "grpc.max_receive_message_length": MAX_MESSAGE_BYTES,
  "grpc.max_send_message_length": MAX_MESSAGE_BYTES,
  "grpc.enable_http_proxy": 0,
};
const search = new coldframe.v1.SearchService(target, grpc.credentials.createInsecure(), options);
const articles = new coldframe.v1.ArticleService(target, grpc.credentials.createInsecure(), options);

/** Make one unary call with a deadline: without one, a call to a server that hangs never ends. */
function call(service, method, request) {
  const deadline = new Date(Date.now() + DEADLINE_MS);
  return promisify(service[method].bind(service))(request, new grpc.Metadata(), { deadline });
}

function print(heading, lines) {
  console.log(`\n${heading}`);
  for (const line of lines) console.log(`  ${line}`);
}

const scored = (hit) => `${hit.score.toFixed(3)}  ${hit.article.id}  ${hit.article.title}`;

/** What a person should read of a refusal; `google.rpc` details say the same in grpc-status-details-bin. */
function refusal(error) {
  const told = (key) => decodeURIComponent(error.metadata.get(key)[0] ?? "");
  return [
    `${grpc.status[error.code]}: ${error.details}`,
    `class ${told("coldframe-error")}, field ${told("coldframe-field")}`,
  ];
}

const seconds = Math.floor(Date.UTC(2026, 2, 14) / 1000);
const storm = {
  id: "node-1",
  title: "Storm closes the harbour",
  content: "A storm at sea keeps the ferries in the harbour until Sunday.",
  published_at: { seconds },
  attributes: { section: "weather" },
};

const { results } = await call(articles, "UpsertArticles", { articles: [storm], cluster_limit: 1 });
print(
  "An article that is new:",
  results.map((one) => `${one.outcome}, in cluster ${one.article.cluster_id} (${one.clusters[0].cluster.label})`),
);

const found = await call(search, "Search", {
  seed: { text: "a storm at sea" },
  limit: 3,
  ranking: { filter: { not: { attribute: { key: "Author", in: { values: ["Milena Drozdek"] } } } } },
});
print("What is like 'a storm at sea', but nothing by Milena Drozdek:", found.hits.map(scored));

const reader = await call(search, "Recommend", {
  seeds: [{ seed: { article_id: "node-1" }, weight: 2 }, { seed: { text: "the economy" } }],
  limit: 4,
  ranking: { read_mask: { paths: ["article.id", "article.title", "score", "explanation"] } },
});
print(
  "A reader of that article who also typed 'the economy':",
  reader.hits.map((hit) => `${scored(hit)}  (interest ${hit.explanation.interest + 1})`),
);
print(
  "Interests:",
  reader.interests.map((one, number) => `${number + 1}: ${Math.round(100 * one.weight)}% ${one.cluster_label}`),
);

try {
  await call(search, "Recommend", { seeds: [] });
} catch (error) {
  print("Nothing to go by is refused:", refusal(error));
}

const gone = await call(articles, "DeleteArticles", { ids: ["node-1", "never-seen"] });
print("Taken down:", [`deleted ${gone.deleted_ids}, not there ${gone.missing_ids}`]);

search.close();
articles.close();
