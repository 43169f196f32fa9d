/**
 * A worker's requests that the main thread does, while the worker serves others: changes of the tree. The worker looks for the
 * results between two requests.
 */
import { constants } from 'node:fs'
import { type MessagePort, receiveMessageOnPort } from 'node:worker_threads'
import { u64le } from '../../binary.js'
import { IN_HEADER, OPCODE, ROOT_ID } from '../protocol/protocol.js'
import type { Waiting } from './put-aside.js'

/** Names in the root of the mount. */
export type TreeChange =
  | { readonly kind: 'create'; readonly name: string }
  | { readonly kind: 'remove'; readonly name: string }
  | { readonly kind: 'rename'; readonly name: string; readonly to: string }

/** Resolves to 0 or to an errno. Never rejects. */
export type ChangeTree = (change: TreeChange) => Promise<number>

/** A worker's message to the main thread. */
export interface Errand {
  readonly number: number
  readonly change: TreeChange
}

/** The main thread's answer: 0 or an errno. */
export interface ErrandResult {
  readonly number: number
  readonly errno: number
}

export interface ErrandSetup {
  /** Brings the results. */
  readonly port: MessagePort
  /** The user who may change the tree besides root: the mount's owner. */
  readonly uid: number
}

/** Only so many wait at once; the others are refused. */
const MOST = 64
/** The bytes of arguments before the names. */
const CREATE_BYTES = 16
const RENAME_BYTES = 8
const RENAME2_BYTES = 16
const RENAME_NOREPLACE = 1

export class Errands {
  private readonly waiting = new Map<number, Waiting>()
  private next = 0

  constructor(
    private readonly setup: ErrandSetup,
    private readonly tell: (message: { readonly errand: Errand }) => void,
  ) {}

  get isEmpty(): boolean {
    return this.waiting.size === 0
  }

  /** Hands a request to the main thread. Returns false for one that changes nothing, or that its user may not make. */
  begin(message: Buffer, length: number, device: number): boolean {
    const change = treeChangeOf(message, length)
    const uid = message.readUInt32LE(IN_HEADER.at.uid)
    const isAllowed = uid === 0 || uid === this.setup.uid
    if (!change || !isAllowed || this.waiting.size >= MOST) return false
    const number = this.next++
    this.waiting.set(number, { message: Buffer.from(message.subarray(0, length)), device })
    this.tell({ errand: { number, change } })
    return true
  }

  /** Returns a request that is done; undefined if none is yet. */
  take(): (Waiting & { readonly errno: number }) | undefined {
    const result = receiveMessageOnPort(this.setup.port)?.message as ErrandResult | undefined
    const request = result && this.waiting.get(result.number)
    if (!result || !request) return undefined
    this.waiting.delete(result.number)
    return { ...request, errno: result.errno }
  }
}

/** Returns the change of the root folder that a request asks for; undefined if it is none of a kind that may be done. */
export function treeChangeOf(message: Buffer, length: number): TreeChange | undefined {
  const args = IN_HEADER.size
  if (length < args) return undefined
  const opcode = message.readUInt32LE(IN_HEADER.at.opcode)
  if (!TREE_OPCODES.has(opcode) || u64le.get(message, IN_HEADER.at.nodeid) !== ROOT_ID) {
    return undefined
  }
  const names = (at: number) => message.toString('utf8', args + at, length).split('\0')
  if (opcode === OPCODE.UNLINK) return changeOf('remove', names(0)[0])
  if (opcode === OPCODE.CREATE) return changeOf('create', names(CREATE_BYTES)[0])
  if (length < args + RENAME2_BYTES) return undefined
  if (opcode === OPCODE.MKNOD) {
    const isFile = (message.readUInt32LE(args) & constants.S_IFMT) === constants.S_IFREG
    return isFile ? changeOf('create', names(CREATE_BYTES)[0]) : undefined
  }
  if (u64le.get(message, args) !== ROOT_ID) return undefined
  const isSecond = opcode === OPCODE.RENAME2
  if (isSecond && (message.readUInt32LE(args + 8) & ~RENAME_NOREPLACE) !== 0) return undefined
  const [name, to] = names(isSecond ? RENAME2_BYTES : RENAME_BYTES)
  return name && to ? { kind: 'rename', name, to } : undefined
}

const changeOf = (kind: 'create' | 'remove', name: string | undefined): TreeChange | undefined =>
  name ? { kind, name } : undefined

const TREE_OPCODES = new Set<number>([
  OPCODE.MKNOD,
  OPCODE.UNLINK,
  OPCODE.RENAME,
  OPCODE.RENAME2,
  OPCODE.CREATE,
])
