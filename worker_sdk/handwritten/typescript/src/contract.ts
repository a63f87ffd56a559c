// The contract, read from the protos when the program starts; its types are generated from them when it is built.
import { join } from 'node:path';
import * as grpc from '@grpc/grpc-js';
import { loadSync } from '@grpc/proto-loader';
import type { Duration__Output as Duration } from '../generated/google/protobuf/Duration';
import type { ProtoGrpcType } from '../generated/worker_service';

export type { ActivityCompletion } from '../generated/romancy/v1/ActivityCompletion';
export type { ActivityTask__Output as ActivityTask } from '../generated/romancy/v1/ActivityTask';
export type { ConnectRequest } from '../generated/romancy/v1/ConnectRequest';
export type { ConnectResponse__Output as ConnectResponse } from '../generated/romancy/v1/ConnectResponse';
export type { Hello } from '../generated/romancy/v1/Hello';

export const MAX_FRAME = 32 * 1024 * 1024; // bytes
const protos = loadSync('romancy/v1/worker_service.proto', {
  includeDirs: [join(__dirname, '../../../../../protos')],
  longs: Number,
  enums: String,
  defaults: true,
  oneofs: true,
});
export const { WorkerService } = (grpc.loadPackageDefinition(protos) as unknown as ProtoGrpcType).romancy.v1;
export const milliseconds = (duration: Duration | null) =>
  Number(duration?.seconds ?? 0) * 1000 + (duration?.nanos ?? 0) / 1e6;
