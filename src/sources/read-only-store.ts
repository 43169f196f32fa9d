/** A store of a source that is only read, for code that could also write: a check that repairs nothing. */
import { constants } from 'node:os'
import { SystemError } from '../errors.js'
import type { Store, WritableStore } from '../io/store.js'

export class ReadOnlyStore implements WritableStore {
  constructor(private readonly store: Store) {}

  get path(): string {
    return this.store.path
  }

  get sizeBytes(): number {
    return this.store.sizeBytes
  }

  read(target: Buffer, start: number, length: number, at: number): number {
    return this.store.read(target, start, length, at)
  }

  nextData(at: number): number {
    return this.store.nextData(at)
  }

  nextHole(at: number): number {
    return this.store.nextHole(at)
  }

  write(): never {
    throw this.refusal('write')
  }

  sync(): void {}

  punch(): never {
    throw this.refusal('fallocate')
  }

  truncate(): never {
    throw this.refusal('ftruncate')
  }

  private refusal(syscall: string): SystemError {
    return new SystemError(syscall, constants.errno.EROFS, this.path)
  }
}
