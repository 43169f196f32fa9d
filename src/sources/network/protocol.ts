/** The messages between the thread that opens images and the network thread. */
import type { MessagePort } from 'node:worker_threads'
import type { CachedSource } from '../cached-store.js'
import type { Settings } from '../settings.js'

export interface NetworkSetup {
  readonly mail: SharedArrayBuffer
  readonly counters: SharedArrayBuffer
}

/** The data that the thread starts with. */
export interface ThreadSetup extends NetworkSetup {
  readonly port: MessagePort
  /** Takes what a log should have. */
  readonly lines: MessagePort
}

/** A line for a log. */
export interface NetworkLine {
  /** The address, as it may be shown. */
  readonly path: string
  readonly message: string
}

export type NetworkRequest =
  /** Answered by NetworkAnswer; then the word in `done` is 1. */
  | {
      readonly do: 'open'
      readonly id: number
      readonly address: string
      readonly settings: Settings
      readonly done: SharedArrayBuffer
    }
  | { readonly do: 'close'; readonly id: number }

export type NetworkAnswer = { readonly id: number } & (
  | { readonly source: CachedSource; readonly modifiedSeconds: number | undefined }
  | { readonly problem: string; readonly hint: string | undefined; readonly isMissing: boolean }
)
