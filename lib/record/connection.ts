/** A connection that another process can go on with: what has been read of it and not dealt with, is still there. */

import type { Connection } from "../../ffi/connection.ts";
import type { Conn } from "../ttrpc/frame.ts";
import type { CallFile, Part } from "./calls.ts";

/** See {@link Conn}. */
export class KeptConnection implements Conn {
  readonly #connection: Connection;
  readonly #calls: CallFile;
  readonly #number: number;
  readonly part: Uint8Array | undefined;
  readonly passed: number | undefined;

  /**
   * Notes what has been read of a connection.
   *
   * @param connection one that peeks
   * @param number what it is known by among the calls
   * @param part what another process has read of a frame
   */
  constructor(connection: Connection, calls: CallFile, number: number, part?: Part) {
    this.#connection = connection;
    this.#calls = calls;
    this.#number = number;
    this.part = part?.bytes;
    this.passed = part?.passed;
  }

  /** Reads what has not been taken: see {@link Conn}. */
  read(buffer: Uint8Array): Promise<number | null> {
    return this.#connection.read(buffer);
  }

  /** Writes some of it: see {@link Conn}. */
  write(buffer: Uint8Array): Promise<number> {
    return this.#connection.write(buffer);
  }

  get gone(): Promise<void> {
    return this.#connection.gone;
  }

  unread(): number {
    return this.#connection.unread();
  }

  take(count: number): void {
    this.#connection.take(count);
  }

  keepPart(bytes: Uint8Array, total: number): void {
    this.#calls.addPart(this.#number, bytes, total);
  }

  passOver(header: Uint8Array, passed: number): void {
    this.#calls.passOver(this.#number, header, passed);
  }

  /** Forgets the part of a frame that was kept. */
  endPart(): void {
    this.#calls.endPart(this.#number);
  }

  /** Closes the connection, and forgets the part. */
  close(): void {
    this.#calls.endPart(this.#number);
    this.#connection.close();
  }
}
